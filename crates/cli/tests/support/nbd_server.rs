//! NBD servers whose exports are backing devices.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Daemon, Guard, text, tool};

/// A server at a unix socket, which ends with its test.
pub struct Server {
    guard: Guard,
    pub socket: PathBuf,
    export: &'static str,
}

impl Server {
    pub fn start(mut command: Command, socket: PathBuf, export: &'static str) -> Server {
        // One that was killed leaves its socket behind.
        let _ = std::fs::remove_file(&socket);
        let child = command.stdin(Stdio::null()).spawn().expect("the server runs");
        let mut guard = Guard(child);
        while !socket.exists() {
            let ended = guard.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "{command:?}: {ended:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Server { guard, socket, export }
    }

    pub fn nbdkit(directory: &Path, arguments: &[&str]) -> Server {
        let socket = directory.join("server.sock");
        let mut command = tool("nbdkit");
        command.args(["-f", "-U", text(&socket)]).args(arguments);
        Server::start(command, socket, "")
    }

    pub fn file(directory: &Path, disk: &Path) -> Server {
        Server::nbdkit(directory, &["file", text(disk)])
    }

    pub fn qemu_nbd(directory: &Path, disk: &Path) -> Server {
        let socket = directory.join("server.sock");
        let mut command = tool("qemu-nbd");
        command.args(["-t", "-e", "16", "-f", "raw", "--cache=none", "-x", "a disk"]);
        command.arg("-k").arg(&socket).arg(disk);
        Server::start(command, socket, "a%20disk")
    }

    pub fn uri(&self) -> PathBuf {
        format!("nbd+unix:///{}?socket={}", self.export, self.socket.display()).into()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.guard.0.kill().expect("a child can be killed");
        self.guard.0.wait().expect("a child can be waited for");
    }
}

/// The report of the first volume.
pub fn volume(daemon: &Daemon) -> Value {
    daemon.status()["sets"][0]["volumes"][0].clone()
}

/// Waits until the connection to the disk is in a state.
pub fn wait_for_connection(daemon: &Daemon, state: &str) -> Value {
    loop {
        let connection = volume(daemon)["backing"]["connection"].clone();
        if connection["state"] == state {
            return connection;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
