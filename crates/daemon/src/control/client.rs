//! The side of the commands: a request to the daemon behind a control socket, and its answer.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use axum::body::{Body, to_bytes};
use axum::http::uri::PathAndQuery;
use axum::http::{Method, Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::process::{ConfigChanges, ProcessRequest};
use super::refusal::{ErrorBody, Refusal};
use super::request::ControlRequest;
use crate::failure::{Code, Failure};
use crate::served::report::Report;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A request as HTTP has it.
struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
}

impl Call {
    fn get(path: impl Into<String>) -> Call {
        Call { method: Method::GET, path: path.into(), body: None }
    }

    fn post(path: impl Into<String>, body: Value) -> Call {
        Call { method: Method::POST, path: path.into(), body: Some(body) }
    }
}

/// Asks the daemon behind a control socket.
pub fn ask(socket: &Path, request: &ControlRequest) -> Result<Value, Failure> {
    let daemon = Asking { socket, word: request.word() };
    let answer = daemon.call(daemon.call_for(request)?)?;
    Ok(plain(request, answer))
}

/// The report of the daemon behind a control socket.
pub fn report(socket: &Path) -> Result<Report, Failure> {
    let value = ask(socket, &ControlRequest::Status)?;
    serde_json::from_value(value).map_err(|error| {
        Failure::refused(socket, format_args!("the daemon's report is unreadable: {error}"))
    })
}

/// The answer without the key under which HTTP has it.
fn plain(request: &ControlRequest, mut answer: Value) -> Value {
    match request {
        ControlRequest::Get { volume: Some(volume), .. } => {
            json!({ volume: answer["value"].take() })
        }
        ControlRequest::GetAll { volume: Some(volume) } => json!({ "volumes": { volume: answer } }),
        ControlRequest::Get { .. } => answer["value"].take(),
        ControlRequest::Detach { .. }
        | ControlRequest::Attach { .. }
        | ControlRequest::FlashCreate { .. }
        | ControlRequest::Add { .. } => answer["volume"].take(),
        ControlRequest::Remove { .. }
        | ControlRequest::Resize { .. }
        | ControlRequest::ResizeCache
        | ControlRequest::ShrinkCache { .. }
        | ControlRequest::CancelShrink
        | ControlRequest::Move { .. }
        | ControlRequest::CancelMove { .. }
        | ControlRequest::FlashResize { .. }
        | ControlRequest::FlashRemove { .. }
        | ControlRequest::ReplaceCache { .. }
        | ControlRequest::ForgetDisk { .. } => answer["message"].take(),
        _ => answer,
    }
}

/// Asks the daemon behind a control socket about its configuration files.
pub fn ask_process(socket: &Path, request: ProcessRequest) -> Result<ConfigChanges, Failure> {
    let (word, call) = match request {
        ProcessRequest::Diff => ("config diff", Call::get("/v1/config/diff")),
        ProcessRequest::Apply => ("config apply", Call::post("/v1/config/apply", json!({}))),
    };
    let daemon = Asking { socket, word };
    serde_json::from_value(daemon.call(call)?).map_err(|error| daemon.unreadable(&error))
}

/// A name as a part of a path.
fn part(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

/// A path as JSON has it.
fn utf8(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure::could_not_run(path, "a daemon that runs takes paths in UTF-8 only")
            .advice("give it another name, or a link with one")
    })
}

/// A daemon, and the command for which it is asked.
struct Asking<'a> {
    socket: &'a Path,
    word: &'static str,
}

impl Asking<'_> {
    fn call_for(&self, request: &ControlRequest) -> Result<Call, Failure> {
        Ok(match request {
            ControlRequest::Status => Call::get("/v1/status"),
            ControlRequest::Stop => Call::post("/v1/stop", json!({})),
            ControlRequest::Upgrade { program } => match program {
                Some(program) => Call::post("/v1/upgrade", json!({ "program": utf8(program)? })),
                None => Call::post("/v1/upgrade", json!({})),
            },
            ControlRequest::Get { name, volume } => {
                let owner = self.owner(volume.as_deref())?;
                Call::get(format!("{owner}/attributes/{}", part(name)))
            }
            ControlRequest::GetAll { volume } => {
                Call::get(format!("{}/attributes", self.owner(volume.as_deref())?))
            }
            ControlRequest::Set { name, value, volume } => Call {
                method: Method::PUT,
                path: format!("{}/attributes/{}", self.owner(volume.as_deref())?, part(name)),
                body: Some(json!({ "value": value })),
            },
            ControlRequest::SetAll { settings, volume } => Call {
                method: Method::PATCH,
                path: format!("{}/attributes", self.owner(volume.as_deref())?),
                body: Some(
                    settings
                        .iter()
                        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
                        .collect(),
                ),
            },
            ControlRequest::Flush { volume } => {
                Call::post(format!("{}/flush", self.owner(volume.as_deref())?), json!({}))
            }
            ControlRequest::Drain { volume, wait } => Call::post(
                format!("{}/drain", self.owner(volume.as_deref())?),
                json!({ "wait": wait }),
            ),
            ControlRequest::Scrub { volume, wait } => Call::post(
                format!("{}/scrub", self.owner(volume.as_deref())?),
                json!({ "wait": wait }),
            ),
            ControlRequest::StopScrub { volume } => {
                Call::post(format!("{}/scrub/stop", self.owner(volume.as_deref())?), json!({}))
            }
            ControlRequest::Detach { volume } => {
                Call::post(format!("{}/detach", self.volume(volume.as_deref())?), json!({}))
            }
            ControlRequest::Attach { volume } => {
                Call::post(format!("{}/attach", self.volume(volume.as_deref())?), json!({}))
            }
            ControlRequest::Remove { volume, keep_dirty } => Call::post(
                format!("{}/remove", self.volume(volume.as_deref())?),
                json!({ "keep_dirty": keep_dirty }),
            ),
            ControlRequest::Limit { .. } => {
                return Err(self
                    .refused("limits are those of the configuration file")
                    .advice("change them there, and run `ubcache config apply`"));
            }
            ControlRequest::Map { volume, cells } => {
                Call::get(format!("{}/map?cells={cells}", self.volume(volume.as_deref())?))
            }
            ControlRequest::Buckets { cells } => {
                Call::get(format!("{}/buckets?cells={cells}", self.set()?))
            }
            ControlRequest::Advice => Call::get(format!("{}/advice", self.set()?)),
            ControlRequest::Gc => Call::post(format!("{}/gc", self.set()?), json!({})),
            ControlRequest::Add { backing, name } => {
                let mut body = json!({ "backing": utf8(backing)? });
                if let Some(name) = name {
                    body["name"] = name.as_str().into();
                }
                Call::post(format!("{}/add", self.set()?), body)
            }
            ControlRequest::ReplaceCache { cache } => Call::post(
                format!("{}/replace-cache", self.set()?),
                json!({ "cache": utf8(cache)? }),
            ),
            ControlRequest::FlashCreate { name, bytes } => Call::post(
                format!("{}/flash", self.set()?),
                json!({ "name": name, "size_bytes": bytes }),
            ),
            ControlRequest::FlashResize { volume, bytes, discard_data } => Call::post(
                format!("{}/resize", self.volume(Some(volume))?),
                json!({ "size_bytes": bytes, "discard_data": discard_data }),
            ),
            ControlRequest::Resize { volume } => {
                Call::post(format!("{}/resize", self.volume(volume.as_deref())?), json!({}))
            }
            ControlRequest::Move { volume, to, force, wait, rate } => Call::post(
                format!("{}/move", self.volume(Some(volume))?),
                json!({ "to": utf8(to)?, "force": force, "wait": wait, "rate_bytes": rate }),
            ),
            ControlRequest::CancelMove { volume } => {
                Call::post(format!("{}/move/cancel", self.volume(Some(volume))?), json!({}))
            }
            ControlRequest::ResizeCache => {
                Call::post(format!("{}/resize-cache", self.set()?), json!({}))
            }
            ControlRequest::ShrinkCache { bytes, wait } => Call::post(
                format!("{}/resize-cache", self.set()?),
                json!({ "size_bytes": bytes, "wait": wait }),
            ),
            ControlRequest::CancelShrink => {
                Call::post(format!("{}/resize-cache/cancel", self.set()?), json!({}))
            }
            ControlRequest::FlashRemove { volume, discard_data, force } => Call::post(
                format!("{}/remove-flash", self.volume(Some(volume))?),
                json!({ "discard_data": discard_data, "force": force }),
            ),
            ControlRequest::ForgetDisk { disk, discard_dirty } => Call::post(
                format!("{}/forget-disk", self.set()?),
                json!({ "disk": disk, "discard_dirty": discard_dirty }),
            ),
        })
    }

    /// The path of a volume, or of the set.
    fn owner(&self, volume: Option<&str>) -> Result<String, Failure> {
        match volume {
            Some(volume) => self.volume(Some(volume)),
            None => self.set(),
        }
    }

    /// The path of a volume, or of the only one.
    fn volume(&self, volume: Option<&str>) -> Result<String, Failure> {
        if let Some(volume) = volume {
            return Ok(format!("/v1/volumes/{}", part(volume)));
        }
        let sets = self.sets()?;
        let volumes = sets.iter().flat_map(|set| set["volumes"].as_array().into_iter().flatten());
        let volumes: Vec<&str> = volumes.filter_map(Value::as_str).collect();
        match volumes.as_slice() {
            [volume] => Ok(format!("/v1/volumes/{}", part(volume))),
            several => Err(self.refused(format_args!(
                "several exports ({}): name one of them",
                several.join(", ")
            ))),
        }
    }

    /// The path of the only set.
    fn set(&self) -> Result<String, Failure> {
        let sets = self.sets()?;
        let uuids: Vec<&str> = sets.iter().filter_map(|set| set["uuid"].as_str()).collect();
        match uuids.as_slice() {
            [uuid] => Ok(format!("/v1/sets/{}", part(uuid))),
            several => Err(self.refused(format_args!(
                "the daemon serves several sets ({}): name an export with --volume",
                several.join(", ")
            ))),
        }
    }

    fn sets(&self) -> Result<Vec<Value>, Failure> {
        let mut sets = self.call(Call::get("/v1/sets"))?;
        match sets["sets"].take() {
            Value::Array(sets) => Ok(sets),
            _ => Err(self.unreadable(&"no list of sets")),
        }
    }

    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::refused_because(self.word, why)
    }

    fn unreadable(&self, why: &dyn std::fmt::Display) -> Failure {
        let why = format_args!("the daemon's answer is unreadable: {why}");
        Failure::refused(self.socket, why)
            .advice("a daemon of an earlier version answers in another way: stop it with SIGTERM")
    }

    /// Sends a request and waits for the answer, as long as it takes.
    fn call(&self, call: Call) -> Result<Value, Failure> {
        let unreachable = |error: std::io::Error| unreachable(self.socket, &error);
        let stream = UnixStream::connect(self.socket).map_err(unreachable)?;
        stream.set_nonblocking(true).map_err(unreachable)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(unreachable)?;
        let (status, body) = runtime.block_on(self.exchange(stream, call))?;
        if status.is_success() {
            return match body.is_empty() {
                true => Ok(Value::Null),
                false => serde_json::from_slice(&body).map_err(|error| self.unreadable(&error)),
            };
        }
        match serde_json::from_slice(&body) {
            Ok(ErrorBody { error }) => Err(self.failure(error)),
            Err(_) => Err(self.unreadable(&format_args!("status {status}"))),
        }
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        call: Call,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let stream = tokio::net::UnixStream::from_std(stream)
            .map_err(|error| unreachable(self.socket, &error))?;
        let gone = |error: hyper::Error| match error.is_incomplete_message() || error.is_canceled()
        {
            true => {
                let what = "the daemon closed the connection without an answer";
                Failure::refused(self.socket, what)
            }
            false => self.unreadable(&error),
        };
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(gone)?;
        let path = call.path.parse::<PathAndQuery>().map_err(|error| self.unreadable(&error))?;
        let text = call.body.map(|body| body.to_string());
        let request = Request::builder()
            .method(call.method)
            .uri(path.as_str())
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("connection", "close")
            .body(text.map_or_else(Body::empty, Body::from))
            .map_err(|error| self.unreadable(&error))?;
        let answering = async {
            let response = sender.send_request(request).await.map_err(gone)?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await;
            Ok((status, body.map_err(|error| self.unreadable(&error))?.into()))
        };
        // The connection moves the bytes; its own error is that of the request as well.
        let moving = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = answering => answer,
            () = moving => unreachable!("it waits for ever"),
        }
    }

    /// A refusal of the daemon, as that of the command.
    fn failure(&self, refusal: Refusal) -> Failure {
        let mut failure = self.refused(refusal.message);
        if let Some(found) = refusal.found {
            failure = failure.found(found);
        }
        if let Some(expected) = refusal.expected {
            failure = failure.expected(expected);
        }
        if let Some(advice) = refusal.advice {
            failure = failure.advice(advice);
        }
        failure
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_part_of_a_path() {
        for (name, path) in
            [("disk0.img", "disk0.img"), ("a/b?c#d%", "a%2Fb%3Fc%23d%25"), ("ä\n", "%C3%A4%0A")]
        {
            assert_eq!(part(name), path);
        }
    }
}
