//! Plans as they are printed.

use std::fmt;

use ubcache_env::SectorRange;

use super::{HEAD, OUTAGES, POLICIES, PROFILES, name_of};
use crate::disk::Rates;
use crate::plan::{
    Action, AfterStart, CacheShape, ClientOp, ControlAction, DiskFaults, Frontend, Hammer,
    LossyDisk, NbdShape, Pace, Plan, Remote, Scarcity, Stored, Sums, UblkShape, VhostShape,
    VolumeShape, Zone,
};

struct Span(SectorRange);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.0.start, self.0.sectors())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        writeln!(
            f,
            "world seed={} policy={} poll-cost-ns={} timer-slop-ns={} last-crash={}",
            self.seed,
            name_of(&POLICIES, &self.policy),
            self.poll_cost.0,
            self.timer_slop.0,
            u8::from(self.last_crash)
        )?;
        writeln!(f, "{}", self.cache)?;
        match &self.frontend {
            Frontend::Direct => {}
            Frontend::Nbd(shape) => writeln!(f, "{shape}")?,
            Frontend::Ublk(shape) => writeln!(f, "{shape}")?,
            Frontend::Vhost(shape) => writeln!(f, "{shape}")?,
        }
        for volume in &self.volumes {
            writeln!(f, "{volume}")?;
        }
        for faults in &self.faults {
            writeln!(f, "{faults}")?;
        }
        for LossyDisk { disk, loss } in &self.lossy {
            writeln!(f, "flush-loss disk={disk} late={}", loss.late)?;
        }
        for Remote { volume, connections, delay_max, keep_bytes, period, budget } in &self.remotes {
            writeln!(
                f,
                "remote volume={volume} connections={connections} delay-us={} \
                 keep-bytes={keep_bytes} period={period} budget={budget}",
                delay_max.as_micros()
            )?;
        }
        for Stored { volume, objects, busy, lost, late, late_max, old_writers } in &self.stored {
            writeln!(
                f,
                "stored volume={volume} objects={objects} busy={busy} lost={lost} late={late} \
                 late-us={} old-writers={}",
                late_max.as_micros(),
                u8::from(*old_writers)
            )?;
        }
        if let Scarcity { rate: rate @ 1.., budget } = self.memory {
            writeln!(f, "memory rate={rate} budget={budget}")?;
        }
        if self.pace != Pace::default() {
            let Pace { step_cost, slice } = self.pace;
            writeln!(f, "pace step-cost-ns={} slice={slice}", step_cost.0)?;
        }
        for Hammer { volume, range, period } in &self.hammers {
            writeln!(f, "hammer v{volume} {} every {}us", Span(*range), period.as_micros())?;
        }
        if self.scribble {
            writeln!(f, "scribble")?;
        }
        if self.kept_bytes > 0 {
            writeln!(f, "kept bytes={}", self.kept_bytes)?;
        }
        if self.sums != Sums::default() {
            writeln!(f, "sums fill-bytes={} copies={}", self.sums.fill_bytes, self.sums.copies)?;
        }
        let (buffers, tables) = (self.buffers_max() / 1024, self.held_max().bytes() / 1024);
        writeln!(f, "# holds {buffers} KiB of buffers and {tables} KiB of tables at most")?;
        for hand in &self.hands {
            writeln!(f, "{hand}")?;
        }
        for control in &self.controls {
            writeln!(
                f,
                "at {} +{}us {}",
                control.after_ops,
                control.delay.as_micros(),
                control.action
            )?;
        }
        for ClientOp { client, volume, action } in &self.ops {
            writeln!(f, "c{client} v{volume} {action}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DiskFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskFaults { disk, zone, rates, budget } = self;
        write!(f, "faults disk={disk}")?;
        match zone {
            Zone::All => {}
            Zone::Superblock => f.write_str(" zone=superblock")?,
            Zone::Journal => f.write_str(" zone=journal")?,
            Zone::Sectors(range) => write!(f, " zone={}", Span(*range))?,
        }
        let Rates { read, write, flush, latent } = rates;
        write!(f, " read={read} write={write} flush={flush} latent={latent} budget={budget}")
    }
}

impl fmt::Display for CacheShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CacheShape {
            bucket_sectors, block_sectors, buckets, node_keys, extents_in_memory, ..
        } = self;
        write!(
            f,
            "cache bucket={bucket_sectors} block={block_sectors} buckets={buckets} \
             node-keys={node_keys} \
             extents={extents_in_memory} lazy={} volatile={} discard={} profile={}",
            u8::from(self.lazy_start),
            u8::from(self.volatile),
            u8::from(self.discard),
            name_of(&PROFILES, &self.profile)
        )?;
        match self.generations {
            CacheShape::ALL_GENERATIONS => Ok(()),
            fewer => write!(f, " generations={fewer}"),
        }
    }
}

impl fmt::Display for NbdShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NbdShape {
            connections,
            delay_max,
            structured,
            requests,
            inflight_bytes,
            receive_bytes,
        } = self;
        write!(
            f,
            "nbd connections={connections} delay-us={} structured={} requests={requests} \
             inflight-bytes={inflight_bytes} receive-bytes={receive_bytes}",
            delay_max.as_micros(),
            u8::from(*structured)
        )
    }
}

impl fmt::Display for UblkShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UblkShape { queues, depth, max_io_bytes, user_copy, places, delay_max } = self;
        write!(
            f,
            "ublk queues={queues} depth={depth} max-io-bytes={max_io_bytes} user-copy={} \
             places={} delay-us={}",
            u8::from(*user_copy),
            u8::from(*places),
            delay_max.as_micros()
        )
    }
}

impl fmt::Display for VhostShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VhostShape { queues, slots, delay_max, pieces, indirect, event_idx, memory_bytes } =
            self;
        write!(
            f,
            "vhost queues={queues} slots={slots} delay-us={} pieces={pieces} indirect={} \
             event-idx={} memory-bytes={memory_bytes}",
            delay_max.as_micros(),
            u8::from(*indirect),
            u8::from(*event_idx)
        )
    }
}

impl fmt::Display for VolumeShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VolumeShape {
            sectors,
            mode,
            initial,
            volatile,
            discard,
            noise,
            head,
            block_sectors,
            profile,
            flash,
            distant,
        } = self;
        write!(
            f,
            "volume sectors={sectors} mode={mode} initial={initial} volatile={} discard={} \
             block={block_sectors} profile={}",
            u8::from(*volatile),
            u8::from(*discard),
            name_of(&PROFILES, profile)
        )?;
        f.write_str(if *noise { " noise=1" } else { "" })?;
        match head {
            0 => {}
            head => write!(f, " head={head}")?,
        }
        f.write_str(if *flash { " flash=1" } else { "" })?;
        f.write_str(if *distant { " distant=1" } else { "" })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fua_of = |fua: &bool| if *fua { " fua" } else { "" };
        match self {
            Action::Read(range) => write!(f, "read {}", Span(*range)),
            Action::Write { range, fua } => write!(f, "write {}{}", Span(*range), fua_of(fua)),
            Action::Discard { range, fua } => write!(f, "discard {}{}", Span(*range), fua_of(fua)),
            Action::Zeroes { range, fua, unmap } => {
                write!(
                    f,
                    "zeroes {}{}{}",
                    Span(*range),
                    fua_of(fua),
                    if *unmap { " unmap" } else { "" }
                )
            }
            Action::Flush => f.write_str("flush"),
            Action::Prefetch(range) => write!(f, "prefetch {}", Span(*range)),
            Action::Status(range) => write!(f, "status {}", Span(*range)),
            Action::Sleep(span) => write!(f, "sleep {}us", span.as_micros()),
        }
    }
}

impl fmt::Display for ControlAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlAction::Attribute { volume, name, value } => {
                write!(f, "set v{volume} {name} {value}")
            }
            ControlAction::CollectGarbage => f.write_str("gc"),
            ControlAction::EvictClean => f.write_str("evict"),
            ControlAction::GrowCache(buckets) => write!(f, "grow-cache {buckets}"),
            ControlAction::ShrinkCache(buckets, None) => write!(f, "shrink-cache {buckets}"),
            ControlAction::ShrinkCache(buckets, Some(cancel)) => {
                write!(f, "shrink-cache {buckets} {}us", cancel.as_micros())
            }
            ControlAction::Restart(after) => write!(f, "restart{after}"),
            ControlAction::Driver(run, after) => write!(f, "{run}{after}"),
            ControlAction::PowerFailure(after) => write!(f, "power-failure{after}"),
            ControlAction::HostRestart(after) => write!(f, "host-restart{after}"),
            ControlAction::ProcessDeath { aside, after } => {
                write!(f, "process-death{}{after}", if *aside { " aside" } else { "" })
            }
            ControlAction::Bad { disk, range } => write!(f, "bad {disk} {}", Span(*range)),
            ControlAction::Disconnect { volume } => write!(f, "disconnect v{volume}"),
            ControlAction::Outage { disk, outage, span } => {
                write!(f, "outage {disk} {}", name_of(&OUTAGES, outage))?;
                span.map_or(Ok(()), |span| write!(f, " {}us", span.as_micros()))
            }
            ControlAction::NoMemory(span) => write!(f, "no-memory {}us", span.as_micros()),
        }
    }
}

impl fmt::Display for AfterStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.check {
            f.write_str(" check")?;
        }
        if let Some(again) = self.again {
            write!(f, " again {}us", again.as_micros())?;
        }
        Ok(())
    }
}
