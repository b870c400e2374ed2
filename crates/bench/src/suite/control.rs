//! Hits while others hammer the control API.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::servers::{Serve, Server, make};
use super::{Options, Results, Row, median};
use crate::nbd::load::{Load, Outcome, Until, run};

/// Clients of the control API.
const CLIENTS: usize = 4;
const QUEUE_DEPTH: u32 = 32;
/// The wanted share of the hits that are left.
const GOAL: f64 = 0.98;

/// Hits of 4 KiB at QD 32 with clients that ask for the status all the time, and without, in turns.
pub fn hits_beside_control(options: &Options, results: &mut Results) -> Result<(), String> {
    let bytes = 256 << 20;
    let files = make(options, "control", 1 << 30, bytes, bytes)?;
    let serve = Serve::with("control.nbd", &["--page-cache=always", "--mode", "writethrough"]);
    let server = Server::ubcache(options, &files, &serve)?;
    server.fill(bytes, 64 << 10, 8)?;
    let misses = server.misses()?;
    let socket = options.directory.join("control.nbd.control");
    let (mut ratios, mut alone, mut beside, mut answers) = (vec![], vec![], vec![], vec![]);
    for turn in 0..2 * options.turns() as u64 {
        // Each of them begins a pair as often as the other.
        let one = |hammered: bool| match hammered {
            true => with_clients(options, &server, &socket, bytes, turn),
            false => hits(options, &server, bytes, turn).map(|outcome| (outcome, 0.0)),
        };
        let first = one(turn % 2 == 0)?;
        let second = one(turn % 2 == 1)?;
        let ((hammered, rate), (quiet, _)) =
            if turn % 2 == 0 { (first, second) } else { (second, first) };
        ratios.push(hammered.iops() / quiet.iops());
        alone.push(quiet.iops());
        beside.push(hammered.iops());
        answers.push(rate);
    }
    server.only_hits_since(misses)?;
    let (alone, beside) = (median(alone), median(beside));
    let ratio = beside / alone;
    results.rows.push(Row {
        what: format!(
            "NBD reads of 4 KiB, hits, QD {QUEUE_DEPTH}, beside {CLIENTS} clients that ask the \
             control API for the status all the time: requests a second"
        ),
        goal: format!("≥ {GOAL} × without them"),
        reached: format!("{beside:.0}; {:.0} answers a second", median(answers)),
        peer: format!("without them {alone:.0}"),
        ratio: format!("{ratio:.3}; of pairs {:.3}", median(ratios)),
        met: Some(ratio >= GOAL),
        command: "`cargo xtask bench --only control`".to_owned(),
    });
    Ok(())
}

fn hits(options: &Options, server: &Server, bytes: u64, seed: u64) -> Result<Outcome, String> {
    let until = Until::Time(options.turn());
    let queue_depth = QUEUE_DEPTH;
    run(&Load { queue_depth, span_bytes: Some(bytes), until, seed, ..server.load() })
}

/// Hits beside the clients of the control API, and how many answers these got in a second.
fn with_clients(
    options: &Options,
    server: &Server,
    socket: &Path,
    bytes: u64,
    seed: u64,
) -> Result<(Outcome, f64), String> {
    let (over, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| ask_until(socket, &over, &answers))).collect();
        let began = std::time::Instant::now();
        let outcome = hits(options, server, bytes, seed);
        let rate = answers.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        Ok((outcome?, rate))
    })
}

/// One client, over one connection.
fn ask_until(socket: &Path, over: &AtomicBool, answers: &AtomicU64) -> Result<(), String> {
    const REQUEST: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let failed = |error: std::io::Error| format!("{}: {error}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let mut piece = vec![0; 64 << 10];
    while !over.load(Ordering::Relaxed) {
        stream.write_all(REQUEST).map_err(failed)?;
        // The report is the only object that ends so.
        let mut end = Vec::new();
        while !end.ends_with(b"]}\n") {
            match stream.read(&mut piece).map_err(failed)? {
                0 => return Err(format!("{}: closed", socket.display())),
                count => end.extend_from_slice(&piece[..count]),
            }
        }
        if !end.starts_with(b"HTTP/1.1 200 ") {
            return Err(String::from_utf8_lossy(&end).into_owned());
        }
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
