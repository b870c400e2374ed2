//! The control API, byte by byte: what a test sends, and when.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Its head, in lower case.
    pub head: String,
    pub body: String,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Part of the error.
    pub fn error(&self, part: &str) -> String {
        let json = self.json();
        let text = json["error"][part].as_str();
        text.unwrap_or_else(|| panic!("no {part} in {json}")).to_owned()
    }
}

/// A request, after which the connection ends.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\
         \r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads a response up to the end of its connection.
pub fn response(stream: impl Read) -> Response {
    response_if_any(stream).expect("a response before the end of the connection")
}

/// Reads a response; none if the connection ends without one.
pub fn response_if_any(mut stream: impl Read) -> Option<Response> {
    let mut bytes = Vec::new();
    // Whoever did not read all of a request ends its connection with a reset, behind the response.
    let end = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{end:?}: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {head}"));
    Some(Response { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// Sends a request on a connection of its own.
pub fn send(socket: &Path, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the control socket");
    // Of a request that is refused not all is read.
    let _ = stream.write_all(&request(method, path, body));
    stream
}

/// Asks, and waits for the response.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Response {
    response(send(socket, method, path, body))
}
