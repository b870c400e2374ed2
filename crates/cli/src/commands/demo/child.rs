//! `ubcache make` and `ubcache serve` as child processes of the demo.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::report::{Report, VolumeReport};

/// Name of the export.
pub const EXPORT: &str = "demo";

/// The backing file.
pub fn disk(directory: &Path) -> PathBuf {
    directory.join("disk.img")
}

fn cache(directory: &Path) -> PathBuf {
    directory.join("cache.img")
}

fn own_command() -> Result<Command, Failure> {
    let path = std::env::current_exe().map_err(|error| {
        Failure::refused_because("demo", format_args!("can't find the program's own path: {error}"))
    })?;
    Ok(Command::new(path))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::refused_because("demo", format_args!("{what}: {error}"))
}

/// Makes the set; files of an earlier demo are removed.
pub fn make(directory: &Path, cache_bytes: u64, disk_bytes: u64) -> Result<(), Failure> {
    for path in [cache(directory), disk(directory)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::could_not_run(
                    &path,
                    format_args!("can't remove it: {error}"),
                ));
            }
            _ => {}
        }
    }
    let output = own_command()?
        .args(["make", "--bucket", "64k", "--label", EXPORT])
        .args([
            "--cache-size",
            &cache_bytes.to_string(),
            "--bdev-size",
            &disk_bytes.to_string(),
            "-C",
        ])
        .arg(cache(directory))
        .arg("-B")
        .arg(disk(directory))
        .output()
        .map_err(|error| failed("can't run `ubcache make`", error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed("`ubcache make` failed", String::from_utf8_lossy(&output.stderr)))
}

/// A running `ubcache serve`.
pub struct Server {
    child: Child,
    /// Its NBD socket.
    pub socket: PathBuf,
    control: PathBuf,
}

impl Server {
    /// Starts it and waits until it is ready.
    pub fn start(directory: &Path, delay: Duration) -> Result<Server, Failure> {
        let (socket, control) = (directory.join("nbd.sock"), directory.join("control.sock"));
        let log = directory.join("serve.log");
        let stderr = File::options().create(true).append(true).open(&log);
        let stderr = stderr.map_err(|error| {
            Failure::could_not_run(&log, format_args!("can't write it: {error}"))
        })?;
        let mut child = own_command()?
            .args(["serve", "-C"])
            .arg(cache(directory))
            .arg("-B")
            .arg(disk(directory))
            .arg("--nbd")
            .arg(format!("unix:{}", socket.display()))
            .arg("--control")
            .arg(&control)
            // Nothing of it has to last, so any directory will do.
            .arg("--page-cache")
            .arg("--demo-delay")
            .arg(delay.as_micros().to_string())
            // A slow laptop would look congested, and then the demo would show the bypass of
            // congestion.
            .args([
                "--set",
                "congested_read_threshold_us=0",
                "--set",
                "congested_write_threshold_us=0",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| failed("can't run `ubcache serve`", error))?;
        let output = child.stdout.take();
        let ready = output
            .into_iter()
            .flat_map(|output| BufReader::new(output).lines())
            .map_while(Result::ok);
        let is_ready = ready.into_iter().any(|line| line.starts_with("ready"));
        let server = Server { child, socket, control };
        if is_ready {
            return Ok(server);
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(8).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Err(failed("`ubcache serve` does not start; its log ends with", last.join("\n")))
    }

    /// `ubcache set`.
    pub fn set(&self, assignment: &str) -> Result<(), Failure> {
        let (name, value) = assignment.split_once('=').unwrap_or((assignment, ""));
        ask(
            &self.control,
            &ControlRequest::Set { name: name.into(), value: value.into(), volume: None },
        )
        .map(|_| ())
    }

    /// The volume's part of `ubcache status --json`.
    pub fn volume(&self) -> Result<VolumeReport, Failure> {
        let value = ask(&self.control, &ControlRequest::Status)?;
        let report: Report = serde_json::from_value(value)
            .map_err(|error| failed("the report is unreadable", error))?;
        let volume = report.sets.into_iter().next().and_then(|set| set.volumes.into_iter().next());
        volume.ok_or_else(|| failed("the report", "there is no volume in it"))
    }

    /// `ubcache stop`.
    pub fn stop(mut self) -> Result<(), Failure> {
        ask(&self.control, &ControlRequest::Stop)?;
        let status =
            self.child.wait().map_err(|error| failed("can't wait for `ubcache serve`", error))?;
        if status.success() { Ok(()) } else { Err(failed("`ubcache serve` failed", status)) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only when the demo fails: after `stop` both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
