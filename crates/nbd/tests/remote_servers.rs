//! The client as a disk against the servers in common use, over a Unix socket and the real reactor.
//! The test skips a server that is not installed, and reports it.
#![allow(
    clippy::disallowed_methods,
    reason = "servers are programs that the test starts, and kills"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use ubcache_env::{Buf, Device, Durability, Env, Nanos, Sector, StreamError};
use ubcache_host::{Host, HostEnv, HostSocket, IoBackend};
use ubcache_nbd::{Connect, RemoteDisk, RemoteOptions};

struct Way {
    env: HostEnv,
    socket: PathBuf,
}

impl Connect for Way {
    type Stream = HostSocket;

    async fn connect(&self) -> Result<HostSocket, StreamError> {
        HostSocket::connect_unix(&self.env, &self.socket).await.map_err(|_| StreamError::Closed)
    }
}

/// A server that is killed with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { directory: tempfile::tempdir().expect("a directory") };
        let image = std::fs::File::create(place.image()).expect("an image");
        image.set_len(64 << 20).expect("a sparse image");
        place
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Starts a server; none if it is not installed.
    fn start(&self, program: &str, arguments: &[&str]) -> Option<Server> {
        let _ = std::fs::remove_file(self.socket());
        let paths = [("SOCKET", self.socket()), ("IMAGE", self.image())];
        let replace = |argument: &&str| {
            paths.iter().fold(argument.to_string(), |text, (name, path)| {
                text.replace(name, path_text(path))
            })
        };
        let arguments: Vec<String> = arguments.iter().map(replace).collect();
        match Command::new(program).args(&arguments).stdin(Stdio::null()).spawn() {
            Ok(child) => Some(Server(child)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("skipped: {program} is not installed");
                None
            }
            Err(error) => panic!("{program}: {error}"),
        }
    }

    /// Opens the disk as soon as the server is there.
    async fn open(&self, env: &HostEnv, options: &RemoteOptions) -> Rc<RemoteDisk<HostEnv, Way>> {
        loop {
            let way = Way { env: env.clone(), socket: self.socket() };
            match RemoteDisk::open(env.clone(), way, String::new(), options.clone()).await {
                Ok(disk) => return disk,
                Err(_) => env.sleep(Nanos::from_millis(5)).await,
            }
        }
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

const SERVERS: [(&str, &[&str]); 3] = [
    ("nbdkit", &["-f", "-U", "SOCKET", "file", "IMAGE"]),
    ("qemu-nbd", &["-t", "-e", "8", "-f", "raw", "-k", "SOCKET", "IMAGE"]),
    ("qemu-nbd", &["-t", "--cache=none", "--discard=unmap", "-f", "raw", "-k", "SOCKET", "IMAGE"]),
];

fn host() -> Host {
    Host::new(IoBackend::Pool).expect("a reactor")
}

#[test]
fn the_exports_of_servers_do_the_duties_of_a_disk() {
    for (program, arguments) in SERVERS {
        let (place, host) = (Place::new(), host());
        let Some(_server) = place.start(program, arguments) else { continue };
        let env = host.env();
        host.block_on(async {
            let disk = place.open(&env, &RemoteOptions::default()).await;
            println!("{program}: {disk:?}, {:?}", disk.counters());
            ubcache_env::testing::device_conformance(&env, disk.clone()).await;
            disk.close().await;
        });
    }
}

#[test]
fn a_server_that_is_killed_and_started_again_has_lost_nothing() {
    for (program, arguments) in SERVERS {
        let (place, host) = (Place::new(), host());
        let Some(server) = place.start(program, arguments) else { continue };
        let env = host.env();
        let content = |at: u64| vec![(at as u8).wrapping_mul(7) ^ 0x35; 4096];
        host.block_on(async {
            let options = RemoteOptions { fence: Nanos::from_secs(1), ..RemoteOptions::default() };
            let disk = place.open(&env, &options).await;
            let mut writes = Vec::new();
            for at in 0..1000_u64 {
                let (disk, data) = (disk.clone(), Buf::from_bytes(&content(at)));
                writes.push(env.spawn(ubcache_env::Priority::Foreground, async move {
                    let at = Sector(at % 500 * 8);
                    let result = disk.write(at, data.into(), Durability::Volatile).await;
                    assert_eq!(result, Ok(()));
                }));
            }
            env.sleep(Nanos::from_millis(3)).await;
            drop(server);
            env.sleep(Nanos::from_millis(200)).await;
            let _server = place.start(program, arguments);
            for write in writes {
                write.join().await;
            }
            assert_eq!(disk.flush().await, Ok(()));
            for at in 0..500_u64 {
                let (buf, result) = disk.read(Sector(at * 8), Buf::zeroed(4096)).await;
                assert_eq!(result, Ok(()));
                let found = buf.as_slice() == content(at) || buf.as_slice() == content(at + 500);
                assert!(found, "block {at} of {program}");
            }
            println!("{program}: {:?}", disk.counters());
            disk.close().await;
        });
    }
}
