//! A server over an array of bytes: the cost of the protocol itself, as little as a thread and its
//! socket can do.
//!
//! It takes all requests that have come in one call, and answers them with one call, out of the
//! array.
#![allow(clippy::disallowed_methods, reason = "this measures in the real world, with its threads")]

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Address, Command, FIXED_NEWSTYLE_NO_ZEROES, GREETING, REPLY_BYTES, REPLY_MAGIC, REQUEST_BYTES,
    REQUEST_MAGIC,
};

/// The longest request.
const REQUEST_BYTES_MAX: usize = 32 << 20;
/// Parts of a message that one call takes.
const PARTS_MAX: usize = 1024;

type Memory = Arc<Mutex<Vec<u8>>>;

/// Listens, calls `ready`, and serves every connection with a thread of its own until the process
/// ends.
pub fn serve(address: &Address, bytes: u64, ready: impl FnOnce()) -> io::Result<()> {
    // Written, else all pages would be the same one of zeroes.
    let memory: Memory = Arc::new(Mutex::new(vec![0x5a; bytes as usize]));
    match address {
        Address::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            ready();
            for stream in listener.incoming() {
                start(stream?, &memory);
            }
        }
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address)?;
            ready();
            for stream in listener.incoming() {
                let stream = stream?;
                stream.set_nodelay(true)?;
                start(stream, &memory);
            }
        }
    }
    Ok(())
}

fn start(stream: impl Read + Write + Send + 'static, memory: &Memory) {
    let memory = memory.clone();
    std::thread::spawn(move || {
        if let Err(error) = connection(stream, &memory)
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            eprintln!("ubcache-bench: a connection ended: {error}");
        }
    });
}

fn connection(mut stream: impl Read + Write, memory: &Memory) -> io::Result<()> {
    let bytes = memory.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
    stream.write_all(GREETING)?;
    stream.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let name_bytes = u32::from_be_bytes(head[16..].try_into().expect("four bytes"));
    // Only the option EXPORT_NAME is known, and every name is good.
    io::copy(&mut Read::by_ref(&mut stream).take(u64::from(name_bytes)), &mut io::sink())?;
    stream.write_all(&bytes.to_be_bytes())?;
    // Has flags, and takes flushes and FUA.
    stream.write_all(&0b1101_u16.to_be_bytes())?;

    let mut input = vec![0; 1 << 20];
    let mut filled = 0;
    let mut replies: Vec<Reply> = Vec::new();
    loop {
        let read = stream.read(&mut input[filled..])?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        while let Some(request) = NbdRequest::parse(&input[taken..filled])? {
            if request.command == Command::Disconnect as u16 {
                return Ok(());
            }
            let length = request.length as usize;
            let content = if request.command == Command::Write as u16 { length } else { 0 };
            let whole = REQUEST_BYTES + content;
            if filled - taken < whole {
                if input.len() < whole {
                    input.resize(whole, 0);
                }
                break;
            }
            let range = memory_range(&request, memory.len());
            let error: u32 = if range.is_some() { 0 } else { 22 };
            let mut head = [0; REPLY_BYTES];
            head[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
            head[4..8].copy_from_slice(&error.to_be_bytes());
            head[8..].copy_from_slice(&request.cookie);
            let mut reply = Reply { head, content: 0..0 };
            if let Some(range) = range {
                if content > 0 {
                    memory[range].copy_from_slice(&input[taken + REQUEST_BYTES..taken + whole]);
                } else if request.command == Command::Read as u16 {
                    reply.content = range;
                }
            }
            replies.push(reply);
            taken += whole;
        }
        input.copy_within(taken..filled, 0);
        filled -= taken;
        send(&mut stream, &replies, &memory)?;
        replies.clear();
    }
}

struct Reply {
    head: [u8; REPLY_BYTES],
    content: std::ops::Range<usize>,
}

struct NbdRequest {
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    length: u32,
}

impl NbdRequest {
    fn parse(input: &[u8]) -> io::Result<Option<NbdRequest>> {
        let Some(head) = input.first_chunk::<REQUEST_BYTES>() else { return Ok(None) };
        let number = |from: usize, to: usize| {
            head[from..to].iter().fold(0_u64, |number, &byte| (number << 8) | u64::from(byte))
        };
        let length = number(24, 28) as u32;
        if number(0, 4) != u64::from(REQUEST_MAGIC) || length as usize > REQUEST_BYTES_MAX {
            return Err(io::Error::other("this is no request"));
        }
        Ok(Some(NbdRequest {
            command: number(6, 8) as u16,
            cookie: head[8..16].try_into().expect("eight bytes"),
            offset: number(16, 24),
            length,
        }))
    }
}

fn memory_range(request: &NbdRequest, bytes: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(request.offset).ok()?;
    let end = start.checked_add(request.length as usize)?;
    (end <= bytes).then_some(start..end)
}

fn send(stream: &mut impl Write, replies: &[Reply], memory: &[u8]) -> io::Result<()> {
    for replies in replies.chunks(PARTS_MAX / 2) {
        let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(PARTS_MAX);
        for reply in replies {
            parts.push(IoSlice::new(&reply.head));
            if !reply.content.is_empty() {
                parts.push(IoSlice::new(&memory[reply.content.clone()]));
            }
        }
        let mut rest = &mut parts[..];
        while !rest.is_empty() {
            let sent = stream.write_vectored(rest)?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut rest, sent);
        }
    }
    Ok(())
}
