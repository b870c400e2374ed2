//! Requests as fast as they are answered.
//!
//! Every connection has a thread. It sends whatever may be sent in one call, takes whatever has
//! come in one call, and sends new requests for all the replies that were in it, so that the
//! client's share of the processor stays small.
#![allow(
    clippy::disallowed_methods,
    reason = "this measures in the real world, with its clock and threads"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde_json::{Value, json};

use super::client::{connect, push_request};
use super::{Address, Command, REPLY_BYTES, REPLY_MAGIC};
use crate::cpu_time;
use crate::random::Random;

/// Replies are taken in pieces of up to this many bytes.
const INPUT_BYTES: usize = 1 << 20;
/// Silence after which a server counts as stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Percentiles that are reported.
pub const PERCENTILES: &[f64] = &[50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];

/// When a load ends.
#[derive(Copy, Clone, PartialEq, Debug)]
pub enum Until {
    /// After so long.
    Time(Duration),
    /// After so many requests, over all connections.
    Requests(u64),
}

/// Order of the offsets of requests.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Anywhere, each block as likely as any other.
    Random,
    /// One after the other, and from the beginning again. The connections begin at places far from
    /// each other.
    Sequential,
    /// Every block once, one far from the other, then from the beginning again.
    Scattered,
}

/// Settings of a load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Address of the server.
    pub address: Address,
    /// Name of the export.
    pub export: String,
    /// Connections.
    pub connections: u32,
    /// Requests in flight on each.
    pub queue_depth: u32,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Percentage of writes.
    pub write_percent: u32,
    /// Writes in a hundred requests.
    pub order: Order,
    /// Order of the offsets of requests.
    pub offset_bytes: u64,
    /// Its length; `None`: to the end.
    pub span_bytes: Option<u64>,
    /// Writes are durable when they are answered.
    pub fua: bool,
    /// After so many writes of a connection comes a flush, which is waited for; 0: never.
    pub flush_every: u32,
    /// When to end.
    pub until: Until,
    /// A process whose processor time is measured.
    pub server_pid: Option<u32>,
    /// Seed of the places.
    pub seed: u64,
}

impl Load {
    /// Random reads of 4 KiB over the whole export, 32 at a time on one connection, for five
    /// seconds.
    pub fn new(address: Address) -> Load {
        Load {
            address,
            export: String::new(),
            connections: 1,
            queue_depth: 32,
            block_bytes: 4096,
            write_percent: 0,
            order: Order::Random,
            offset_bytes: 0,
            span_bytes: None,
            fua: false,
            flush_every: 0,
            until: Until::Time(Duration::from_secs(5)),
            server_pid: None,
            seed: 1,
        }
    }
}

/// Start of the part of the export that requests use.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests answered, flushes included.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// Duration of the load.
    pub elapsed: Duration,
    /// Time of the server's threads.
    pub server_cpu: Option<Duration>,
    /// Time of the client's threads.
    pub client_cpu: Duration,
    /// Calls that sent, took or waited.
    pub calls: u64,
    /// Time from a request to its reply, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Requests in a second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }
    /// Bytes in a second.
    pub fn bandwidth(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64()
    }
    /// Microseconds that the server's processor worked for a request.
    pub fn server_micros(&self) -> Option<f64> {
        self.server_cpu.map(|time| time.as_secs_f64() * 1e6 / self.requests as f64)
    }
    /// A percentile of the latency in microseconds.
    pub fn percentile_micros(&self, percentile: f64) -> f64 {
        self.latency.value_at_percentile(percentile) as f64 / 1e3
    }
    /// The result in JSON.
    pub fn json(&self) -> Value {
        let percentiles: Vec<Value> =
            PERCENTILES.iter().map(|&p| json!([p, self.percentile_micros(p)])).collect();
        json!({
            "requests": self.requests,
            "errors": self.errors,
            "bytes": self.bytes,
            "seconds": self.elapsed.as_secs_f64(),
            "iops": self.iops(),
            "bytes_per_second": self.bandwidth(),
            "latency_us": percentiles,
            "latency_mean_us": self.latency.mean() / 1e3,
            "server_cpu_us_per_request": self.server_micros(),
            "client_cpu_us_per_request": self.client_cpu.as_secs_f64() * 1e6 / self.requests as f64,
            "client_calls_per_request": self.calls as f64 / self.requests as f64,
        })
    }
}

/// State that all connections share.
struct Shared {
    stop: AtomicBool,
    left: AtomicU64,
    end: Option<Instant>,
}

/// Runs the load.
pub fn run(load: &Load) -> Result<Outcome, String> {
    let mut connections = Vec::new();
    for number in 0..load.connections {
        let connected = connect(&load.address, &load.export)
            .map_err(|error| format!("connecting to {:?}: {error}", load.address))?;
        let rest = connected.export_bytes.saturating_sub(load.offset_bytes);
        let blocks = load.span_bytes.unwrap_or(rest).min(rest) / u64::from(load.block_bytes);
        if blocks == 0 {
            return Err(format!(
                "an export of {} bytes has no room for a request",
                connected.export_bytes
            ));
        }
        set_socket_timeout(&connected.socket, Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|error| format!("setting a timeout: {error}"))?;
        connections.push(Connection::new(connected.socket, load, number, blocks));
    }
    let began = Instant::now();
    let (left, end) = match load.until {
        Until::Requests(requests) => (requests, None),
        Until::Time(time) => (u64::MAX, Some(began + time)),
    };
    let shared = Shared { stop: AtomicBool::new(false), left: AtomicU64::new(left), end };
    let cpu = load.server_pid.map(cpu_time::of_process).transpose()?;
    let done: Vec<Result<Connection, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                let shared = &shared;
                scope.spawn(move || {
                    let began = cpu_time::of_thread();
                    let done = connection.run(load, shared);
                    connection.cpu = cpu_time::of_thread() - began;
                    // The others need not go on.
                    if done.is_err() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    done.map(|()| connection)
                        .map_err(|error| format!("talking to the server: {error}"))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a load does not panic")).collect()
    });
    let elapsed = began.elapsed();
    let server_cpu = match (load.server_pid, cpu) {
        (Some(pid), Some(before)) => Some(cpu_time::of_process(pid)?.saturating_sub(before)),
        _ => None,
    };
    let mut outcome = Outcome {
        requests: 0,
        errors: 0,
        bytes: 0,
        elapsed,
        server_cpu,
        client_cpu: Duration::ZERO,
        calls: 0,
        latency: histogram(),
    };
    for connection in done {
        let connection = connection?;
        outcome.requests += connection.requests;
        outcome.errors += connection.errors;
        outcome.bytes += connection.bytes;
        outcome.client_cpu += connection.cpu;
        outcome.calls += connection.calls;
        outcome.latency.add(&connection.latency).expect("histograms of one shape");
    }
    Ok(outcome)
}

fn histogram() -> Histogram<u64> {
    // Limit of one hour: no answer takes longer.
    Histogram::new_with_max(3_600_000_000_000, 3).expect("three digits of an hour are possible")
}

#[derive(Copy, Clone)]
struct Slot {
    began: Instant,
    command: Command,
}

struct Connection {
    socket: OwnedFd,
    slots: Vec<Slot>,
    in_flight: u32,
    input: Vec<u8>,
    /// The part of `input` that was not parsed yet.
    fresh: (usize, usize),
    output: Vec<u8>,
    sent: usize,
    payload: Vec<u8>,
    random: Random,
    blocks: u64,
    next_block: u64,
    stride: u64,
    writes: u32,
    /// A flush is due or in flight; no write goes out until it is answered.
    flushing: bool,
    idle: Vec<u32>,
    requests: u64,
    errors: u64,
    bytes: u64,
    calls: u64,
    cpu: Duration,
    latency: Histogram<u64>,
}

impl Connection {
    fn new(socket: OwnedFd, load: &Load, number: u32, blocks: u64) -> Connection {
        let slot = Slot { began: Instant::now(), command: Command::Flush };
        let mut payload = vec![0; load.block_bytes as usize];
        let mut random = Random::new(load.seed.wrapping_mul(1000).wrapping_add(u64::from(number)));
        payload.fill_with(|| random.bits() as u8);
        Connection {
            socket,
            slots: vec![slot; load.queue_depth as usize],
            in_flight: 0,
            input: vec![0; INPUT_BYTES + load.block_bytes as usize + REPLY_BYTES],
            fresh: (0, 0),
            output: Vec::new(),
            sent: 0,
            payload,
            random,
            blocks,
            next_block: u64::from(number) * (blocks / u64::from(load.connections)),
            stride: stride(blocks),
            writes: 0,
            flushing: false,
            idle: (0..load.queue_depth).collect(),
            requests: 0,
            errors: 0,
            bytes: 0,
            calls: 0,
            cpu: Duration::ZERO,
            latency: histogram(),
        }
    }

    fn run(&mut self, load: &Load, shared: &Shared) -> io::Result<()> {
        let mut now = Instant::now();
        loop {
            if shared.end.is_some_and(|end| now >= end) {
                shared.stop.store(true, Ordering::Relaxed);
            }
            self.make_requests(load, shared, now);
            if self.in_flight == 0 {
                return self.disconnect();
            }
            self.send()?;
            self.receive(load)?;
            now = Instant::now();
            self.take_replies(load, now)?;
        }
    }

    /// Gives every idle slot a request.
    fn make_requests(&mut self, load: &Load, shared: &Shared, now: Instant) {
        while let Some(&slot) = self.idle.last() {
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
            if self.flushing && (self.in_flight > 0 || self.writes == 0) {
                // Writes before the flush have to be answered, and then the flush itself.
                return;
            }
            let took = shared
                .left
                .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if took.is_err() {
                return;
            }
            self.idle.pop();
            self.in_flight += 1;
            let command = if self.flushing {
                self.writes = 0;
                Command::Flush
            } else if load.write_percent > 0
                && self.random.below(100) < u64::from(load.write_percent)
            {
                self.writes += 1;
                self.flushing = load.flush_every > 0 && self.writes >= load.flush_every;
                Command::Write
            } else {
                Command::Read
            };
            self.slots[slot as usize] = Slot { began: now, command };
            let (mut offset, mut length) = (0, 0);
            if command != Command::Flush {
                offset = load.offset_bytes + self.place(load.order) * u64::from(load.block_bytes);
                length = load.block_bytes;
            }
            let fua = load.fua && command == Command::Write;
            push_request(&mut self.output, command, fua, u64::from(slot), offset, length);
            if command == Command::Write {
                self.output.extend_from_slice(&self.payload);
            }
        }
    }

    fn place(&mut self, order: Order) -> u64 {
        let place = self.next_block % self.blocks;
        match order {
            Order::Random => return self.random.below(self.blocks),
            Order::Sequential => self.next_block = place + 1,
            Order::Scattered => self.next_block = place + self.stride,
        }
        place
    }

    /// Sends as much as the socket takes.
    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            self.calls += 1;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, &self.output[self.sent..], flags) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// Waits for input and takes what is there; if something is still to be sent, that may go on
    /// instead.
    fn receive(&mut self, load: &Load) -> io::Result<()> {
        let (start, end) = self.fresh;
        if start == end {
            self.fresh = (0, 0);
        } else if self.input.len() - end < load.block_bytes as usize + REPLY_BYTES {
            self.input.copy_within(start..end, 0);
            self.fresh = (0, end - start);
        }
        let mut flags = RecvFlags::empty();
        if !self.output.is_empty() {
            self.calls += 1;
            let mut wait = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::OUT)];
            match poll(&mut wait, None) {
                Ok(_) | Err(Errno::INTR) => flags = RecvFlags::DONTWAIT,
                Err(error) => return Err(error.into()),
            }
        }
        self.calls += 1;
        match recv(&self.socket, &mut self.input[self.fresh.1..], flags) {
            Ok((0, _)) => Err(io::Error::other("the server has closed the connection")),
            Ok((length, _)) => {
                self.fresh.1 += length;
                Ok(())
            }
            Err(Errno::AGAIN) if flags.is_empty() => {
                Err(io::Error::other(format!("no answer for {} s", ANSWER_TIMEOUT.as_secs())))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Handles all complete replies.
    fn take_replies(&mut self, load: &Load, now: Instant) -> io::Result<()> {
        loop {
            let rest = &self.input[self.fresh.0..self.fresh.1];
            let Some(reply) = rest.first_chunk::<REPLY_BYTES>() else { return Ok(()) };
            let (magic, error) = (word(reply, 0), word(reply, 4));
            let cookie = (u64::from(word(reply, 8)) << 32) | u64::from(word(reply, 12));
            let slot =
                usize::try_from(cookie).ok().and_then(|number| self.slots.get(number)).copied();
            let slot = slot.filter(|_| magic == REPLY_MAGIC);
            let slot =
                slot.ok_or_else(|| io::Error::other("the server does not answer what was asked"))?;
            let content = match slot.command {
                Command::Read if error == 0 => load.block_bytes as usize,
                _ => 0,
            };
            if rest.len() < REPLY_BYTES + content {
                return Ok(());
            }
            self.fresh.0 += REPLY_BYTES + content;
            self.in_flight -= 1;
            self.idle.push(cookie as u32);
            self.requests += 1;
            self.errors += u64::from(error != 0);
            if slot.command == Command::Flush {
                self.flushing = false;
            } else {
                self.bytes += u64::from(load.block_bytes);
            }
            self.latency.saturating_record(now.duration_since(slot.began).as_nanos() as u64);
        }
    }

    fn disconnect(&mut self) -> io::Result<()> {
        push_request(&mut self.output, Command::Disconnect, false, 0, 0, 0);
        self.send()
    }
}

/// A step that visits all of so many blocks, each far from the one before: by the golden ratio.
fn stride(blocks: u64) -> u64 {
    let far = (blocks as f64 * 0.618_034) as u64;
    (far.max(1)..).find(|&step| greatest_common_divisor(step, blocks) == 1).unwrap_or(1)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn word(bytes: &[u8; REPLY_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
