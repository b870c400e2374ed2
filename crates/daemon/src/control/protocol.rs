//! The control protocol: one JSON object a line, over a unix socket (docs/guide/operate.md).
//!
//! ```text
//! → {"command":"get","name":"cache_mode","volume":"disk"}
//! ← {"ok":true,"result":"[writethrough] writeback writearound none"}
//! ← {"ok":false,"error":"there is no attribute of that name"}
//! ```

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};

/// The longest request line that the daemon reads.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// A request to the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum ControlRequest {
    /// The report of `status --json`.
    Status,
    /// A clean stop. The answer comes when everything is on the devices.
    Stop,
    /// Sets an attribute of a volume, or of the set when no volume has such an attribute.
    Set {
        /// Name of the attribute, as in bcache's sysfs.
        name: String,
        /// Its new value.
        value: String,
        /// The export whose attribute is meant; all volumes if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
    /// Sets several attributes in order, or none of them if one can't be set.
    SetAll {
        /// Names and new values.
        settings: Vec<(String, String)>,
        /// The export whose attributes are meant; all volumes if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
    /// Reads an attribute: an object from export to value, or the value of the set's attribute.
    Get {
        /// Name of the attribute, as in bcache's sysfs.
        name: String,
        /// The export whose attribute is meant; all volumes if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
    /// Reads all attributes: an object from export to name to value, and those of the set.
    GetAll {
        /// The export whose attributes are meant; all volumes and the set if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
    /// Starts a garbage collection.
    Gc,
    /// Writes back a volume's dirty data and detaches it from the set; it stays served. The
    /// response comes when that is done.
    Detach {
        /// The export; may be absent if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
    /// Forgets a backing device that is not served, with what the cache has of it.
    ForgetDisk {
        /// Its UUID.
        disk: String,
        /// Give up what only the cache has.
        #[serde(default)]
        discard_dirty: bool,
    },
    /// Gives the volumes that need no cache another one.
    ReplaceCache {
        /// The new cache device.
        cache: PathBuf,
    },
    /// Serves one more backing device.
    Add {
        /// The backing device.
        backing: PathBuf,
        /// Name of the export; if absent, its label or file name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Ends an export, after its dirty data was written back.
    Remove {
        /// The export; may be absent if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
        /// End it at once; dirty data stays in the cache.
        #[serde(default)]
        keep_dirty: bool,
    },
    /// Makes durable what was acknowledged.
    Flush {
        /// The export; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
    /// Writes back all dirty data.
    Drain {
        /// The export; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
        /// The response comes when that is done.
        #[serde(default)]
        wait: bool,
    },
    /// Lets another program go on in this process, with all clients. That program gives the
    /// response, or this one if it can't.
    Upgrade {
        /// Its path; if absent, the one by which this program was started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<PathBuf>,
    },
    /// Gives a detached volume its cache again.
    Attach {
        /// The export; may be absent if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
    },
}

impl ControlRequest {
    /// The command line's word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            ControlRequest::Status => "status",
            ControlRequest::Stop => "stop",
            ControlRequest::Set { .. } | ControlRequest::SetAll { .. } => "set",
            ControlRequest::Get { .. } | ControlRequest::GetAll { .. } => "get",
            ControlRequest::Gc => "gc",
            ControlRequest::Detach { .. } => "detach",
            ControlRequest::ForgetDisk { .. } => "forget-disk",
            ControlRequest::Attach { .. } | ControlRequest::ReplaceCache { .. } => "attach",
            ControlRequest::Add { .. } => "add",
            ControlRequest::Remove { .. } => "remove",
            ControlRequest::Flush { .. } => "flush",
            ControlRequest::Drain { .. } => "drain",
            ControlRequest::Upgrade { .. } => "upgrade",
        }
    }

    /// Returns true if it changes anything that another program would have to know.
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.word(), "status" | "get" | "stop" | "upgrade")
    }
}

/// The daemon's response.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Response {
    /// True if the request was carried out.
    pub ok: bool,
    /// Result of the request.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub result: serde_json::Value,
    /// Reason why it was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Response {
    /// A request was carried out.
    pub fn done(result: serde_json::Value) -> Response {
        Response { ok: true, result, error: None }
    }

    /// A request was refused.
    pub fn refused(why: impl std::fmt::Display) -> Response {
        Response { ok: false, result: serde_json::Value::Null, error: Some(why.to_string()) }
    }

    /// The line that goes over the socket, newline included.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self)
            .expect("plain data without non-string keys always serializes");
        line.push('\n');
        line
    }
}

/// Reads a request line.
pub fn parse_request(line: &str) -> Result<ControlRequest, String> {
    serde_json::from_str(line).map_err(|error| format!("not a request: {error}"))
}

/// Asks the daemon behind a control socket.
pub fn ask(socket: &Path, request: &ControlRequest) -> Result<serde_json::Value, Failure> {
    let unreachable = |error: std::io::Error| unreachable(socket, &error);
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    let mut line = serde_json::to_string(request).expect("plain data always serializes");
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(unreachable)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(unreachable)?;
    if answer.is_empty() {
        return Err(Failure::refused(socket, "the daemon closed the connection without an answer"));
    }
    let response: Response = serde_json::from_str(&answer).map_err(|error| {
        Failure::refused(socket, format_args!("the daemon's answer is unreadable: {error}"))
    })?;
    match response.ok {
        true => Ok(response.result),
        false => {
            let why = response.error.unwrap_or_else(|| "refused".to_owned());
            Err(Failure::refused_because(request.word(), why))
        }
    }
}

/// The failure for a socket behind which nobody answers, or not to this user.
fn unreachable(socket: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => denied(socket),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::could_not_run(
            socket,
            format_args!("no daemon answers at this control socket: {error}"),
        )
        .with_code(Code::NoDaemon)
        .advice("check that `ubcache serve` runs, and give its socket with --control PATH"),
        _ => Failure::could_not_run(
            socket,
            format_args!("can't talk to the daemon at this control socket: {error}"),
        ),
    }
}

/// The failure for a control socket, or a directory of them, of another user.
pub fn denied(path: &Path) -> Failure {
    Failure::could_not_run(path, "permission denied: a daemon may run there, of another user")
        .expected("the user of the daemon, or root")
        .advice("run the command as that user, for example with sudo")
}

/// The directories where control sockets are put and looked for, best first.
pub fn socket_directories() -> Vec<PathBuf> {
    let run = PathBuf::from("/run/ubcache");
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => vec![run, PathBuf::from(dir).join("ubcache")],
        None => vec![run],
    }
}

/// Control sockets in the usual directories.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sockets {
    /// Sockets at which somebody answers.
    pub live: Vec<PathBuf>,
    /// Sockets, and directories of them, that this user may not use.
    pub denied: Vec<PathBuf>,
}

/// Looks for control sockets in the usual directories.
pub fn find_sockets() -> Sockets {
    find_sockets_in(&socket_directories())
}

fn find_sockets_in(directories: &[PathBuf]) -> Sockets {
    let mut found = Sockets::default();
    for directory in directories {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() == ErrorKind::PermissionDenied {
                    found.denied.push(directory.clone());
                }
                continue;
            }
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "sock") {
                continue;
            }
            match UnixStream::connect(&path) {
                Ok(_) => found.live.push(path),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    found.denied.push(path);
                }
                Err(_) => {}
            }
        }
    }
    found.live.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        let request =
            ControlRequest::Set { name: "cache_mode".into(), value: "none".into(), volume: None };
        let line = serde_json::to_string(&request).expect("plain data");
        assert_eq!(line, r#"{"command":"set","name":"cache_mode","value":"none"}"#);
        assert_eq!(parse_request(&line), Ok(request));
        assert_eq!(parse_request(r#"{"command":"stop"}"#), Ok(ControlRequest::Stop));
        assert!(parse_request("{}").is_err());
        assert!(parse_request(r#"{"command":"explode"}"#).is_err());
    }

    #[test]
    fn responses_omit_absent_fields() {
        assert_eq!(Response::done(serde_json::Value::Null).to_line(), "{\"ok\":true}\n");
        assert_eq!(Response::refused("no").to_line(), "{\"ok\":false,\"error\":\"no\"}\n");
    }
}
