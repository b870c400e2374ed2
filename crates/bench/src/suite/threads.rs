//! Hits of several connections: threads for clients (`serve --threads`) beside one thread.

use super::servers::{Serve, Server, in_turns, make};
use super::{Options, Results, Row};
use crate::nbd::load::{Load, Until};

const THREADS: &str = "2";
/// Connections, and requests in flight on each.
const LOADS: &[(u32, u32)] = &[(1, 1), (1, 32), (2, 64), (4, 32)];

/// Read hits of 4 KiB, all files in the page cache, of a set with one thread, one with lanes, and
/// of nbdkit's plugins for files and memory, which have threads of their own.
pub fn several_connections(options: &Options, results: &mut Results) -> Result<(), String> {
    let bytes = 256 << 20;
    let serve = |name, threads| -> Result<Server, String> {
        let files = make(options, name, 2 << 30, bytes, bytes)?;
        let arguments = ["--page-cache=always", "--mode", "writethrough", "--threads", threads];
        let server = Server::ubcache(options, &files, &Serve::with(name, &arguments))?;
        server.fill(bytes, 4096, 32)?;
        Ok(server)
    };
    let (one, lanes) = (serve("one.nbd", "1")?, serve("lanes.nbd", THREADS)?);
    let size = bytes.to_string();
    let memory = Server::nbdkit(options, "nbdkit memory", "memory.nbd", &["memory", &size])?;
    memory.once(bytes, 1 << 20, true, 4)?;
    let backing = options.directory.join("one.nbd-backing.img");
    let backing = backing.display().to_string();
    let file = Server::nbdkit(options, "nbdkit file", "file.nbd", &["file", &backing])?;
    file.fill(bytes, 64 << 10, 8)?;
    for &(connections, queue_depth) in LOADS {
        let until = Until::Time(options.turn());
        let span_bytes = Some(bytes);
        let load = |load| Load { connections, queue_depth, until, span_bytes, ..load };
        let found = in_turns(&[&one, &lanes, &memory, &file], options.turns(), load)?;
        let [one, lanes, memory, file] = &found[..] else { unreachable!("four servers") };
        let ratio = lanes.iops / one.iops;
        let goal = if connections > 1 { 1.5 } else { 0.95 };
        results.rows.push(Row {
            what: format!(
                "NBD read hits of 4 KiB, page cache, {connections} connections × QD {queue_depth}, \
                 `--threads {THREADS}` beside one thread: requests a second"
            ),
            goal: format!("≥ {goal} × one thread"),
            reached: format!(
                "{:.0} ({:.2} µs of processors each)",
                lanes.iops, lanes.server_micros
            ),
            peer: format!(
                "one thread {:.0} ({:.2} µs), nbdkit file {:.0}, memory {:.0}",
                one.iops, one.server_micros, file.iops, memory.iops
            ),
            ratio: format!("{ratio:.2}"),
            met: Some(ratio >= goal),
            command: "`cargo xtask bench --only threads`".to_owned(),
        });
    }
    Ok(())
}
