//! Small reads of one client beside others that ask for as much as they can.

use super::servers::{Serve, Server, make};
use super::{Options, Results, Row};
use crate::nbd::load::{Load, Order, Outcome, Until, run};

const GREEDY_BYTES: u32 = 1 << 20;
const GREEDY_DEPTH: u32 = 32;

/// Reads of 4 KiB at QD 1 beside two clients of 1 MiB × QD 32, beside nbdkit's file plugin, all in
/// memory. Both servers get turns, so that other work of the machine hits both.
pub fn small_beside_large(options: &Options, results: &mut Results) -> Result<(), String> {
    let bytes = 512 << 20;
    let files = make(options, "fair", 2 << 30, bytes, bytes)?;
    let serve = Serve::with("fair.nbd", &["--page-cache=always", "--mode", "writethrough"]);
    let ubcache = Server::ubcache(options, &files, &serve)?;
    let backing = format!("{}", files.backing.display());
    let nbdkit = Server::nbdkit(options, "nbdkit file", "file.nbd", &["file", &backing])?;
    ubcache.fill(bytes, 64 << 10, 8)?;
    // A start throws the kernel's copy of the backing file away.
    nbdkit.fill(bytes, 64 << 10, 8)?;
    let mut found = [const { (Vec::new(), Vec::new()) }; 2];
    for turn in 0..options.turns() as u64 {
        for (server, found) in [&ubcache, &nbdkit].into_iter().zip(&mut found) {
            let (small, greedy) = beside(options, server, bytes, turn)?;
            found.0.push(small.iops());
            found.1.push(greedy.bandwidth() / 1e6);
        }
    }
    let [(ours, our_large), (theirs, their_large)] =
        found.map(|(small, large)| (super::median(small), super::median(large)));
    results.rows.push(Row {
        what: "NBD reads of 4 KiB, QD 1, beside two clients of 1 MiB × QD 32, all in memory: \
            requests a second"
            .to_owned(),
        goal: "≥ 0.5 × nbdkit file".to_owned(),
        reached: format!("{ours:.0}; the large ones {our_large:.0} MB/s"),
        peer: format!("nbdkit file {theirs:.0}; {their_large:.0} MB/s"),
        ratio: format!("{:.2}; {:.2}", ours / theirs, our_large / their_large),
        met: Some(ours >= theirs / 2.0),
        command: "`cargo xtask bench --only fair`; by hand: twice `ubcache-bench nbd unix:SOCKET \
            --export data --sequential -b 1M`, and beside them `-q 1`"
            .to_owned(),
    });
    Ok(())
}

/// One turn of the small reads, and the large ones beside them.
fn beside(
    options: &Options,
    server: &Server,
    bytes: u64,
    seed: u64,
) -> Result<(Outcome, Outcome), String> {
    let time = options.turn();
    let half = bytes / 2;
    let small = Load {
        queue_depth: 1,
        offset_bytes: half,
        span_bytes: Some(half),
        until: Until::Time(time),
        seed,
        ..server.load()
    };
    let greedy = Load {
        connections: 2,
        queue_depth: GREEDY_DEPTH,
        block_bytes: GREEDY_BYTES,
        order: Order::Sequential,
        offset_bytes: 0,
        span_bytes: Some(half),
        // It begins before the small reads, and ends after them.
        until: Until::Time(time * 2),
        ..server.load()
    };
    std::thread::scope(|scope| {
        let others = scope.spawn(|| run(&greedy));
        std::thread::sleep(time / 2);
        let small = run(&small);
        Ok((small?, others.join().expect("a load does not panic")?))
    })
}
