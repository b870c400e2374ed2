//! A backing device with the shape of a network: 20 ms for a request, 200 MB/s for all of them.
//!
//! nbdkit is that device: its filter `delay` makes the latency, its filter `rate` the bandwidth.
//! The raw path is the same client at nbdkit itself. The filter lets two seconds' worth through at
//! once after a pause, so whatever it has saved is used up before each measurement.

use std::time::{Duration, Instant};

use super::servers::{Files, Serve, Server, make_over};
use super::{Options, Results, Row, median};
use crate::nbd::load::{Load, Order, Outcome, Until, run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Bytes a second of the backing device.
const BANDWIDTH: u64 = 200_000_000;
/// Size of the backing device; nothing of it takes memory until it is written.
const BACKING_BYTES: u64 = 32 * GIB;
/// More than the filter saves up.
const SAVED_BYTES: u64 = BANDWIDTH * 5 / 2;
/// Requests in flight of a client that is not limited by the latency.
const DEEP: u32 = 16;

/// The two ways to the backing device, and the next place of it that nobody has read.
struct Ways {
    raw: Server,
    cached: Server,
    next_cold: u64,
}

impl Ways {
    fn start(options: &Options) -> Result<Ways, String> {
        let rate = format!("rate={}", BANDWIDTH * 8);
        let size = BACKING_BYTES.to_string();
        let arguments = [
            "-t",
            "64",
            "--filter=delay",
            "--filter=rate",
            "memory",
            &size,
            "rdelay=20ms",
            "wdelay=20ms",
            &rate,
        ];
        let raw = Server::nbdkit(options, "nbdkit, raw", "slow.nbd", &arguments)?;
        let backing =
            format!("nbd+unix:///?socket={}", options.directory.join("slow.nbd").display());
        let files =
            Files { cache: options.directory.join("slow-cache.img"), backing: backing.into() };
        make_over(options, &files, "8g")?;
        let serve = Serve::with("slow-cached.nbd", &["--page-cache=always", "--mode", "writeback"]);
        let cached = Server::ubcache(options, &files, &serve)?;
        Ok(Ways { raw, cached, next_cold: GIB })
    }

    /// Runs a load when the backing device has nothing saved up.
    fn run(&self, load: &Load) -> Result<Outcome, String> {
        run(&Load {
            block_bytes: MIB as u32,
            queue_depth: 32,
            order: Order::Sequential,
            until: Until::Requests(SAVED_BYTES / MIB),
            ..self.raw.load()
        })?;
        let outcome = run(load)?;
        match outcome.errors {
            0 => Ok(outcome),
            errors => Err(format!("{errors} requests failed")),
        }
    }

    /// The same load at places that are not in the cache, raw and cached, in turns.
    fn cold(
        &mut self,
        options: &Options,
        change: impl Fn(Load) -> Load,
    ) -> Result<(Vec<Outcome>, Vec<Outcome>), String> {
        let (mut raw, mut cached) = (Vec::new(), Vec::new());
        for turn in 0..options.turns().min(3) as u64 {
            for (server, outcomes) in [(&self.raw, &mut raw), (&self.cached, &mut cached)] {
                let load = change(Load { seed: turn + 1, ..server.load() });
                outcomes.push(self.run(&Load { offset_bytes: self.next_cold, ..load })?);
            }
            self.next_cold += 2 * GIB;
        }
        Ok((raw, cached))
    }
}

/// Misses, streams and writeback over the slow backing device.
pub fn slow_backing(options: &Options, results: &mut Results) -> Result<(), String> {
    let mut ways = Ways::start(options)?;
    misses(options, &mut ways, results)?;
    streams(options, &mut ways, results)?;
    drain(options, &ways, results)
}

const COMMAND: &str = "`cargo xtask bench --only slow`";

fn misses(options: &Options, ways: &mut Ways, results: &mut Results) -> Result<(), String> {
    let turn = Until::Time(options.turn());
    let (raw, cached) =
        ways.cold(options, |load| Load { span_bytes: Some(2 * GIB), until: turn, ..load })?;
    let (raw, cached) = (middle(&raw, Outcome::iops), middle(&cached, Outcome::iops));
    results.rows.push(Row {
        what: "20 ms and 200 MB/s behind NBD: random read misses, 4 KiB, QD 32: requests a second"
            .to_owned(),
        goal: "≥ 0.95 × raw".to_owned(),
        reached: format!("{cached:.0}"),
        peer: format!("nbdkit without a cache {raw:.0}"),
        ratio: format!("{:.2}", cached / raw),
        met: Some(cached >= 0.95 * raw),
        command: COMMAND.to_owned(),
    });
    Ok(())
}

fn streams(options: &Options, ways: &mut Ways, results: &mut Results) -> Result<(), String> {
    let stream_bytes = options.working_set_bytes();
    let stream = |block_bytes: u64, queue_depth, load: Load| Load {
        block_bytes: block_bytes as u32,
        queue_depth,
        order: Order::Sequential,
        span_bytes: Some(stream_bytes),
        until: Until::Requests(stream_bytes / block_bytes),
        ..load
    };
    let (raw, cached) = ways.cold(options, |load| stream(MIB, DEEP, load))?;
    let (raw, cached) = (middle(&raw, Outcome::bandwidth), middle(&cached, Outcome::bandwidth));
    results.rows.push(Row {
        what: format!("the same: sequential reads, cold, 1 MiB, QD {DEEP}: MB/s"),
        goal: "≥ 0.9 × raw".to_owned(),
        reached: format!("{:.0}", cached / 1e6),
        peer: format!("nbdkit without a cache {:.0}", raw / 1e6),
        ratio: format!("{:.2}", cached / raw),
        met: Some(cached >= 0.9 * raw),
        command: COMMAND.to_owned(),
    });
    // Without read-ahead a client of one request at a time gets 128 KiB each 20 ms.
    let started = ways.next_cold;
    let mut cold = Vec::new();
    for turn in 0..options.turns().min(3) as u64 {
        let load = stream(MIB / 8, 1, Load { seed: turn, ..ways.cached.load() });
        cold.push(ways.run(&Load { offset_bytes: started + turn * 2 * GIB, ..load })?);
    }
    ways.next_cold += 6 * GIB;
    let single = middle(&cold, Outcome::bandwidth);
    results.rows.push(Row {
        what: "the same, of a client that asks for 128 KiB at a time, QD 1: MB/s".to_owned(),
        goal: format!("≥ 0.9 × raw at QD {DEEP}"),
        reached: format!("{:.0}", single / 1e6),
        peer: format!("nbdkit without a cache, 1 MiB, QD {DEEP}: {:.0}", raw / 1e6),
        ratio: format!("{:.2}", single / raw),
        met: Some(single >= 0.9 * raw),
        command: COMMAND.to_owned(),
    });
    let warm = Load { offset_bytes: GIB + 2 * GIB * 3, ..ways.cached.load() };
    let warm = ways.run(&stream(MIB, DEEP, warm))?.bandwidth();
    results.rows.push(Row {
        what: format!("the same, read again, 1 MiB, QD {DEEP}: MB/s"),
        goal: "≥ 2.5 × raw".to_owned(),
        reached: format!("{:.0}", warm / 1e6),
        peer: format!("nbdkit without a cache {:.0}", raw / 1e6),
        ratio: format!("{:.1}", warm / raw),
        met: Some(warm >= 2.5 * raw),
        command: COMMAND.to_owned(),
    });
    Ok(())
}

fn drain(options: &Options, ways: &Ways, results: &mut Results) -> Result<(), String> {
    let bytes = options.working_set_bytes();
    let (mut raw, mut drained) = (Vec::new(), Vec::new());
    for _ in 0..options.turns().min(3) {
        let write = |load: Load| Load {
            block_bytes: MIB as u32,
            queue_depth: DEEP,
            order: Order::Sequential,
            span_bytes: Some(bytes),
            write_percent: 100,
            until: Until::Requests(bytes / MIB),
            ..load
        };
        // Not where the cached volume has its data.
        let beside = Load { offset_bytes: BACKING_BYTES - GIB, ..ways.raw.load() };
        raw.push(ways.write(&write(beside))?.bandwidth());
        ways.cached.set(&["writeback_running=0"])?;
        run(&write(ways.cached.load()))?;
        let dirty = ways.cached.status("/volumes/0/dirty_bytes")?;
        ways.use_up_writes()?;
        let began = Instant::now();
        ways.cached.set(&["writeback_percent=0", "writeback_delay=0", "writeback_running=1"])?;
        while ways.cached.status("/volumes/0/dirty_bytes")? > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        drained.push(dirty as f64 / began.elapsed().as_secs_f64());
    }
    let (raw, drained) = (median(raw), median(drained));
    results.rows.push(Row {
        what: "the same: writeback of sequential dirty data: MB/s".to_owned(),
        goal: format!("≥ 0.9 × raw writes of 1 MiB at QD {DEEP}"),
        reached: format!("{:.0}", drained / 1e6),
        peer: format!("nbdkit without a cache {:.0}", raw / 1e6),
        ratio: format!("{:.2}", drained / raw),
        met: Some(drained >= 0.9 * raw),
        command: COMMAND.to_owned(),
    });
    Ok(())
}

impl Ways {
    /// Uses up what the backing device has saved for writes.
    fn use_up_writes(&self) -> Result<(), String> {
        run(&Load {
            block_bytes: MIB as u32,
            queue_depth: 32,
            order: Order::Sequential,
            write_percent: 100,
            offset_bytes: BACKING_BYTES - GIB,
            until: Until::Requests(SAVED_BYTES / MIB),
            ..self.raw.load()
        })
        .map(drop)
    }

    fn write(&self, load: &Load) -> Result<Outcome, String> {
        self.use_up_writes()?;
        run(load)
    }
}

fn middle(outcomes: &[Outcome], number: fn(&Outcome) -> f64) -> f64 {
    median(outcomes.iter().map(number).collect())
}
