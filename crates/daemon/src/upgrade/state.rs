//! The state that a program leaves to the next: a file in memory with a JSON object, and behind it
//! the bytes of clients that were received or not sent.
//!
//! ```text
//!  length of the object (8 bytes, little-endian)
//!  object
//!  for each client: bytes received, bytes not sent
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ubcache_engine::{OwedErrors, OwedStream, Remembered};
use ubcache_env::StreamId;
use ubcache_host::ListenAddress;

use super::FORMAT;

/// A path, or another text of the system, of any bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RawPath(Vec<u8>);

impl From<OsString> for RawPath {
    fn from(text: OsString) -> RawPath {
        RawPath(text.into_vec())
    }
}

impl From<&Path> for RawPath {
    fn from(path: &Path) -> RawPath {
        RawPath(path.as_os_str().as_bytes().to_vec())
    }
}

impl RawPath {
    /// The path.
    pub fn path(&self) -> PathBuf {
        OsString::from_vec(self.0.clone()).into()
    }
}

/// State of a daemon between two programs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Its form: [`FORMAT`].
    pub format: u32,
    /// Version of the program that has left it.
    pub version: String,
    /// The program that is to go on.
    pub program: RawPath,
    /// The program that has left it.
    pub before: RawPath,
    /// That program, open.
    pub before_fd: RawFd,
    /// Its arguments, which are those of each program that goes on.
    pub arguments: Vec<RawPath>,
    /// Its environment, likewise.
    pub environment: Vec<(RawPath, RawPath)>,
    /// Time on the monotonic clock at which clients began to wait, in nanoseconds.
    pub began: u64,
    /// Reason why the other program did not go on.
    pub failed: Option<String>,
    /// Path of the cache device.
    pub cache: RawPath,
    /// Attributes of the set that do not survive a restart.
    pub attributes: Vec<(String, String)>,
    /// The volumes, in the order of their exports.
    pub volumes: Vec<VolumeState>,
    /// Backing devices that are not served: path and name.
    pub down: Vec<(RawPath, String)>,
    /// The empty name stands for the first export.
    pub default_export: bool,
    /// The control socket.
    pub control: Listener,
    /// The sockets for clients.
    pub listeners: Vec<Listener>,
    /// Number of the next client.
    pub next_client: u64,
    /// The clients.
    pub clients: Vec<Client>,
    /// The connection that waits for the end of the upgrade.
    pub requester: RawFd,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VolumeState {
    /// Name of its export.
    pub name: String,
    /// Path of its backing device.
    pub path: RawPath,
    /// Attributes that do not survive a restart.
    pub attributes: Vec<(String, String)>,
    /// Sectors that a failed flush may have cost: first one, end.
    pub suspects: Vec<(u64, u64)>,
    /// Failed flushes.
    pub failures: u64,
    /// Somebody knows of the failures up to this one.
    pub known: u64,
    /// Streams: number, failures that it knows of, that it knew of, if it stands for another one.
    pub streams: Vec<(u64, u64, u64, bool)>,
    /// For each stream that left something behind, the failures that it knew of.
    pub left: Vec<u64>,
}

impl VolumeState {
    /// The state of a volume.
    pub fn new(name: &str, path: &Path, remembered: Remembered) -> VolumeState {
        let OwedErrors { failures, known, streams, left } = remembered.owed;
        let stream = |it: OwedStream| (it.id.0, it.knows, it.knew, it.stands_in);
        VolumeState {
            name: name.to_owned(),
            path: path.into(),
            attributes: remembered.attributes,
            suspects: remembered.suspects,
            failures,
            known,
            streams: streams.into_iter().map(stream).collect(),
            left,
        }
    }

    /// The knowledge of the engine in it.
    pub fn remembered(&self) -> Remembered {
        let stream = |&(id, knows, knew, stands_in): &(u64, u64, u64, bool)| OwedStream {
            id: StreamId(id),
            knows,
            knew,
            stands_in,
        };
        Remembered {
            attributes: self.attributes.clone(),
            owed: OwedErrors {
                failures: self.failures,
                known: self.known,
                streams: self.streams.iter().map(stream).collect(),
                left: self.left.clone(),
            },
            suspects: self.suspects.clone(),
        }
    }
}

/// A socket that listens.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Listener {
    /// Its descriptor.
    pub fd: RawFd,
    /// Path of a unix socket.
    pub path: RawPath,
    /// Device and inode of a unix socket that a program before has made.
    pub made: Option<(u64, u64)>,
    /// The address of a TCP socket.
    pub tcp: Option<std::net::SocketAddr>,
}

impl Listener {
    /// A socket that listens there.
    pub fn new(fd: RawFd, place: &ListenAddress) -> Listener {
        let listener = Listener { fd, ..Listener::default() };
        match place {
            ListenAddress::Unix { path, made } => {
                Listener { path: path.as_path().into(), made: Some(*made), ..listener }
            }
            ListenAddress::Passed(path) => Listener { path: path.as_path().into(), ..listener },
            ListenAddress::Tcp(address) => Listener { tcp: Some(*address), ..listener },
        }
    }

    /// Its address.
    pub fn place(&self) -> ListenAddress {
        match (self.tcp, self.made) {
            (Some(address), _) => ListenAddress::Tcp(address),
            (None, Some(made)) => ListenAddress::Unix { path: self.path.path(), made },
            (None, None) => ListenAddress::Passed(self.path.path()),
        }
    }
}

/// A client.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Client {
    /// Its socket.
    pub fd: RawFd,
    /// Its number.
    pub id: u64,
    /// Its address, or that of the socket to which it is connected.
    pub from: String,
    /// Name of its export.
    pub export: String,
    /// Structured replies were agreed on.
    pub structured: bool,
    /// Names of the metadata contexts that it has chosen.
    pub contexts: Vec<String>,
    /// A refused write whose payload is still to come: cookie, error, words, bytes to come.
    pub refused: Option<(u64, u32, String, u32)>,
    /// Number of bytes that were received and not carried out.
    pub(crate) received_bytes: u64,
    /// Number of bytes of replies that were not sent.
    pub(crate) unsent_bytes: u64,
    /// These bytes.
    #[serde(skip)]
    pub received: Vec<u8>,
    /// These bytes.
    #[serde(skip)]
    pub unsent: Vec<u8>,
}

impl State {
    /// All descriptors that go with it.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let sockets = self.listeners.iter().map(|listener| listener.fd);
        let clients = self.clients.iter().map(|client| client.fd);
        [self.before_fd, self.control.fd, self.requester].into_iter().chain(sockets).chain(clients)
    }

    /// Writes it to a file, in place of what is there.
    pub fn write(&mut self, mut file: &File) -> io::Result<()> {
        self.format = FORMAT;
        for client in &mut self.clients {
            client.received_bytes = client.received.len() as u64;
            client.unsent_bytes = client.unsent.len() as u64;
        }
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        let object = serde_json::to_vec(self)?;
        file.write_all(&(object.len() as u64).to_le_bytes())?;
        file.write_all(&object)?;
        for client in &self.clients {
            file.write_all(&client.received)?;
            file.write_all(&client.unsent)?;
        }
        Ok(())
    }

    /// Reads it from a file.
    pub fn read(mut file: &File) -> io::Result<State> {
        /// The part that every form has.
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut rest = bytes.as_slice();
        let mut take = |length: u64| {
            let split = usize::try_from(length).ok().and_then(|at| rest.split_at_checked(at));
            let (taken, behind) = split.ok_or_else(|| wrong("it is cut short".to_owned()))?;
            rest = behind;
            Ok::<_, io::Error>(taken)
        };
        let length = take(8)?.try_into().map_or(0, u64::from_le_bytes);
        let object = take(length)?;
        let Form { format } = serde_json::from_slice(object)?;
        if format != FORMAT {
            return Err(wrong(format!("its form is {format}; this program knows {FORMAT}")));
        }
        let mut state: State = serde_json::from_slice(object)?;
        for client in &mut state.clients {
            client.received = take(client.received_bytes)?.to_vec();
            client.unsent = take(client.unsent_bytes)?.to_vec();
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> File {
        ubcache_host::memory::file_in_memory(0).expect("a file in memory")
    }

    #[test]
    fn state_is_read_as_it_was_written() {
        let client = |received: &[u8], unsent: &[u8]| Client {
            received: received.to_vec(),
            unsent: unsent.to_vec(),
            contexts: vec!["base:allocation".to_owned()],
            ..Client::default()
        };
        let listener = Listener { made: Some((1, 2)), ..Listener::default() };
        let mut state = State {
            clients: vec![client(b"abc", b""), client(b"", &[7; 70_000])],
            cache: Path::new(std::ffi::OsStr::from_bytes(b"/dev/\xff")).into(),
            listeners: vec![listener],
            ..State::default()
        };
        let file = memory();
        for _ in 0..2 {
            state.write(&file).expect("written");
            assert_eq!(State::read(&file).expect("read"), state);
        }
        state.clients.pop();
        state.write(&file).expect("written over a longer one");
        assert_eq!(State::read(&file).expect("read"), state);
    }

    #[test]
    fn damaged_state_is_an_error() {
        let file = memory();
        assert!(State::read(&file).is_err());
        let mut state = State { clients: vec![Client::default()], ..State::default() };
        state.clients[0].unsent = vec![1; 10];
        state.write(&file).expect("written");
        let length = file.metadata().expect("metadata").len();
        for length in [0, 7, 8, 100, length - 1] {
            let cut = memory();
            state.write(&cut).expect("written");
            cut.set_len(length).expect("cut");
            assert!(State::read(&cut).is_err(), "{length}");
        }
    }
}
