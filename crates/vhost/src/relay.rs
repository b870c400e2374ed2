//! Whole messages to the handler and back, without waiting.
//!
//! The handler of the `vhost` crate checks messages well, but reads a socket and blocks on it. Here
//! it reads one end of a socket pair, and gets a message only when all of it has come: so it never
//! waits, whatever the peer sends or does not read.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ubcache_env::{Channel, PassedFiles, StreamError};
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE};
use vhost::vhost_user::{BackendReqHandler, VhostUserBackendReqHandler};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::serve::ServeError;

const HEADER_BYTES: usize = 12;
/// Files of one message, at most, as the handler takes them.
const FILES_MAX: usize = 32;

/// A message of the monitor, whole.
pub(crate) struct Message {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Message {
    /// Its kind, if that is known.
    pub(crate) fn kind(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.word(0)?).ok()
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    }

    /// The number of the queue that it is about, for messages that begin with it.
    pub(crate) fn queue(&self) -> Option<u32> {
        self.word(HEADER_BYTES)
    }

    /// Its only file, once more.
    pub(crate) fn copy_of_file(&self) -> io::Result<Option<OwnedFd>> {
        match self.files.as_slice() {
            [file] => file.try_clone().map(Some),
            _ => Ok(None),
        }
    }
}

/// Receives messages. A dropped future loses nothing: what has come of a message stays.
#[derive(Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Reader {
    /// The next message; none if the peer has left in good order.
    pub(crate) async fn next<C: Channel>(
        &mut self,
        channel: &C,
    ) -> Result<Option<Message>, ServeError> {
        loop {
            let wanted = self.bytes_wanted()?;
            if self.bytes.len() == wanted {
                let (bytes, files) =
                    (std::mem::take(&mut self.bytes), std::mem::take(&mut self.files));
                return Ok(Some(Message { bytes, files }));
            }
            let received = channel.recv(wanted - self.bytes.len()).await;
            let received = match received {
                Err(StreamError::Closed) if self.bytes.is_empty() => return Ok(None),
                received => received?,
            };
            if received.bytes.is_empty() {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(ServeError::Disconnected)
                };
            }
            self.bytes.extend(received.bytes);
            self.files.extend(received.files);
            if self.files.len() > FILES_MAX {
                let text = format!("a message with more than {FILES_MAX} files");
                return Err(ServeError::Protocol(text));
            }
        }
    }

    /// Bytes of the message that is coming, as far as that is known.
    fn bytes_wanted(&self) -> Result<usize, ServeError> {
        let Some(size) = self.bytes.get(8..HEADER_BYTES) else { return Ok(HEADER_BYTES) };
        let size = size.iter().rev().fold(0_usize, |size, byte| size << 8 | usize::from(*byte));
        if size > MAX_MSG_SIZE {
            let text = format!("a message of {size} bytes; at most {MAX_MSG_SIZE} are permitted");
            return Err(ServeError::Protocol(text));
        }
        Ok(HEADER_BYTES + size)
    }
}

/// A handler, and the end of the socket pair that it is reached by.
pub(crate) struct Relay<H: VhostUserBackendReqHandler> {
    handler: BackendReqHandler<H>,
    ours: UnixStream,
}

/// Answer of the handler.
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
    /// The message was refused.
    pub(crate) refused: Option<String>,
}

impl<H: VhostUserBackendReqHandler> Relay<H> {
    pub(crate) fn new(handler: Arc<H>) -> io::Result<Relay<H>> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok(Relay { handler: BackendReqHandler::from_stream(theirs, handler), ours })
    }

    /// Has a message handled.
    pub(crate) fn exchange(&mut self, message: &Message) -> io::Result<Answer> {
        let files: Vec<RawFd> = message.files.iter().map(AsRawFd::as_raw_fd).collect();
        let sent =
            self.ours.send_with_fds(&[&message.bytes[..]], &files).map_err(io::Error::from)?;
        if sent < message.bytes.len() {
            // The rest of it would be waited for.
            return Err(ErrorKind::WriteZero.into());
        }
        let handled = self.handler.handle_request();
        let mut answer = Answer { bytes: Vec::new(), files: Vec::new(), refused: None };
        answer.refused = handled.err().map(|error| error.to_string());
        let mut room = [0; HEADER_BYTES + MAX_MSG_SIZE];
        loop {
            match self.ours.recv_with_fd(&mut room).map_err(io::Error::from) {
                Ok((0, _)) => return Ok(answer),
                Ok((len, file)) => {
                    answer.bytes.extend_from_slice(&room[..len]);
                    answer.files.extend(file.map(|file: File| OwnedFd::from(file)));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answer),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The channel on which the disk speaks to the monitor first.
pub(crate) fn backend_channel<E: PassedFiles>(env: &E, message: &Message) -> Option<E::Channel> {
    let socket = message.copy_of_file().ok()??;
    env.channel(socket).ok()
}

/// The message that the configuration has changed; it has no reply.
pub(crate) fn config_changed() -> Vec<u8> {
    const CONFIG_CHANGE: u32 = 2;
    const VERSION: u32 = 1;
    [CONFIG_CHANGE, VERSION, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}
