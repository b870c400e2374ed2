//! A door before an object store: it can be closed while the store keeps what it has, and it can
//! take the conditions out of requests, as stores do that know none.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A door, which closes when it is dropped: nobody listens at its address then.
pub struct StoreFront {
    pub address: SocketAddr,
    closes: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StoreFront {
    /// Passes requests on as they are.
    pub fn open(store: &str) -> StoreFront {
        StoreFront::start("127.0.0.1:0", store, false)
    }

    /// The same at the address of one that was closed.
    pub fn reopen(address: SocketAddr, store: &str) -> StoreFront {
        StoreFront::start(&address.to_string(), store, false)
    }

    /// Passes requests on without their conditions.
    pub fn without_conditions(store: &str) -> StoreFront {
        StoreFront::start("127.0.0.1:0", store, true)
    }

    fn start(address: &str, store: &str, drops_conditions: bool) -> StoreFront {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (closes, store) = (Arc::<AtomicBool>::default(), store.to_owned());
        let ends = closes.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let store = store.clone();
                std::thread::spawn(move || pass(stream, &store, drops_conditions));
            }
        });
        StoreFront { address, closes, thread: Some(thread) }
    }
}

impl Drop for StoreFront {
    fn drop(&mut self) {
        self.closes.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Passes one request and its response on.
fn pass(mut client: TcpStream, store: &str, drops_conditions: bool) {
    let Some((head, body)) = request(&mut client) else { return };
    let Ok(mut to) = TcpStream::connect(store) else { return };
    let is_condition = |line: &str| line.to_lowercase().starts_with("if-");
    let is_of_connection = |line: &str| line.to_lowercase().starts_with("connection:");
    let mut lines: Vec<&str> = head.split("\r\n").filter(|line| !is_of_connection(line)).collect();
    lines.retain(|line| !(drops_conditions && is_condition(line)));
    let head = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
    let sent = to.write_all(&[head.as_bytes(), &body].concat());
    let mut response = Vec::new();
    if sent.is_ok() && to.read_to_end(&mut response).is_ok() {
        let _ = client.write_all(&response);
    }
    let _ = client.shutdown(Shutdown::Write);
}

/// Head and body; none if the client went away.
fn request(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 65_536];
    loop {
        if let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.split("\r\n").find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().ok()).flatten()
            });
            if bytes.len() >= end + 4 + length.unwrap_or(0) {
                return Some((head, bytes.split_off(end + 4)));
            }
        }
        match client.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    }
}
