//! A plan from its lines, and the checks that need more than one of them.

use std::str::FromStr;

use ubcache_env::Nanos;

use super::lines::{
    parse_cache, parse_control, parse_faults, parse_hammer, parse_nbd, parse_op, parse_ublk,
    parse_vhost, parse_volume,
};
use super::words::{Parsed, Words};
use super::{HEAD, POLICIES, PlanError};
use crate::disk::FlushLoss;
use crate::executor::Policy;
use crate::plan::moves::is_move;
use crate::plan::{
    CacheShape, ClientOp, Control, DiskFaults, Frontend, Hammer, Hand, LossyDisk, Pace, Plan,
    Remote, Scarcity, Stored, Sums, VolumeShape,
};

/// A plan as far as it has been read.
#[derive(Default)]
struct Draft {
    world: Option<(u64, Policy, Nanos, Nanos, bool)>,
    cache: Option<CacheShape>,
    frontend: Option<Frontend>,
    volumes: Vec<VolumeShape>,
    faults: Vec<DiskFaults>,
    lossy: Vec<LossyDisk>,
    remotes: Vec<Remote>,
    stored: Vec<Stored>,
    memory: Scarcity,
    pace: Pace,
    hammers: Vec<Hammer>,
    scribble: bool,
    sums: Sums,
    kept_bytes: u32,
    ops: Vec<ClientOp>,
    controls: Vec<Control>,
    hands: Vec<Hand>,
}

impl Draft {
    fn line(&mut self, line: &str) -> Parsed<()> {
        let mut words = Words(line.split_whitespace());
        match words.word()? {
            "world" => {
                let seed = words.num("seed")?;
                let policy = words.named("policy", &POLICIES)?;
                let cost = Nanos(words.num("poll-cost-ns")?);
                let slop = Nanos(words.num("timer-slop-ns")?);
                self.world = Some((seed, policy, cost, slop, words.flag("last-crash")?));
            }
            "cache" => self.cache = Some(parse_cache(&mut words)?),
            "nbd" => self.frontend = Some(Frontend::Nbd(parse_nbd(&mut words)?)),
            "ublk" => self.frontend = Some(Frontend::Ublk(parse_ublk(&mut words)?)),
            "vhost" => self.frontend = Some(Frontend::Vhost(parse_vhost(&mut words)?)),
            "volume" => self.volumes.push(parse_volume(&mut words)?),
            "faults" => self.faults.push(parse_faults(&mut words)?),
            "flush-loss" => {
                let disk = words.num("disk")?;
                self.lossy.push(LossyDisk { disk, loss: FlushLoss { late: words.num("late")? } });
            }
            "remote" => self.remotes.push(Remote {
                volume: words.num("volume")?,
                connections: words.num("connections")?,
                delay_max: Nanos::from_micros(words.num("delay-us")?),
                keep_bytes: words.num("keep-bytes")?,
                period: words.num("period")?,
                budget: words.num("budget")?,
            }),
            "stored" => self.stored.push(Stored {
                volume: words.num("volume")?,
                objects: words.num("objects")?,
                busy: words.num("busy")?,
                lost: words.num("lost")?,
                late: words.num("late")?,
                late_max: Nanos::from_micros(words.num("late-us")?),
                old_writers: words.flag("old-writers")?,
            }),
            "memory" => {
                self.memory = Scarcity { rate: words.num("rate")?, budget: words.num("budget")? }
            }
            "pace" => {
                self.pace = Pace {
                    step_cost: Nanos(words.num("step-cost-ns")?),
                    slice: words.num("slice")?,
                };
            }
            "hammer" => self.hammers.push(parse_hammer(&mut words)?),
            "scribble" => self.scribble = true,
            "sums" => {
                self.sums =
                    Sums { fill_bytes: words.num("fill-bytes")?, copies: words.num("copies")? }
            }
            "kept" => self.kept_bytes = words.num("bytes")?,
            "at" => self.controls.push(parse_control(&mut words)?),
            "hand" => {
                self.hands.push(line.parse()?);
                return Ok(());
            }
            client if client.starts_with('c') => {
                let op = parse_op(&client[1..], &mut words)?;
                let sectors = self.volumes.get(op.volume as usize).map(|volume| volume.sectors);
                let sectors = sectors.ok_or("there is no such volume")?;
                if op.action.range().is_some_and(|range| range.end.0 > sectors || range.is_empty())
                {
                    return Err("the range is not within the volume".to_owned());
                }
                self.ops.push(op);
            }
            other => return Err(format!("nothing is called \"{other}\"")),
        }
        words.maybe().map_or(Ok(()), |word| Err(format!("\"{word}\" is too much")))
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Plan, PlanError> {
        let mut draft = Draft::default();
        let wrong = |line: usize, text: &str, why: String| PlanError {
            line: line + 1,
            text: text.to_owned(),
            why,
        };
        let mut lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        match lines.next() {
            Some((_, line)) if line.trim() == HEAD => {}
            other => {
                let (number, line) = other.unwrap_or((0, ""));
                return Err(wrong(number, line, format!("a plan begins with \"{HEAD}\"")));
            }
        }
        for (number, line) in lines {
            draft.line(line).map_err(|why| wrong(number, line, why))?;
        }
        let missing =
            |what: &str| wrong(text.lines().count(), "", format!("there is no {what} line"));
        let (seed, policy, poll_cost, timer_slop, last_crash) =
            draft.world.ok_or_else(|| missing("world"))?;
        let cache = draft.cache.ok_or_else(|| missing("cache"))?;
        let Draft {
            frontend,
            volumes,
            faults,
            lossy,
            remotes,
            stored,
            memory,
            pace,
            sums,
            scribble,
            hammers,
            kept_bytes,
            ops,
            controls,
            hands,
            ..
        } = draft;
        let frontend = frontend.unwrap_or(Frontend::Direct);
        if volumes.is_empty() {
            return Err(missing("volume"));
        }
        let broken = controls.iter().filter_map(|control| control.action.broken_disk());
        let mut disks = broken
            .chain(faults.iter().map(|it| it.disk))
            .chain(hands.iter().map(|it| it.disk))
            .chain(lossy.iter().map(|it| it.disk))
            .chain(remotes.iter().map(|it| it.volume + 1))
            .chain(stored.iter().map(|it| it.volume + 1));
        // A volume that moves has another disk, behind the others.
        let moves = controls.iter().any(|control| is_move(&control.action));
        let disks_max = volumes.len() + usize::from(moves);
        if let Some(disk) = disks.find(|disk| *disk > disks_max) {
            return Err(wrong(text.lines().count(), "", format!("there is no disk {disk}")));
        }
        let mut named = controls.iter().filter_map(|control| control.action.volume());
        if let Some(volume) = named.find(|volume| *volume as usize >= volumes.len()) {
            return Err(wrong(text.lines().count(), "", format!("there is no volume {volume}")));
        }
        let fits = |hammer: &Hammer| {
            volumes.get(hammer.volume as usize).is_some_and(|volume| {
                hammer.range.end.0 <= volume.sectors && !hammer.range.is_empty()
            })
        };
        if !hammers.iter().all(fits) {
            let why = "the range of a hammer is not within its volume".to_owned();
            return Err(wrong(text.lines().count(), "", why));
        }
        Ok(Plan {
            seed,
            policy,
            poll_cost,
            timer_slop,
            last_crash,
            cache,
            frontend,
            volumes,
            faults,
            lossy,
            remotes,
            stored,
            memory,
            pace,
            hammers,
            scribble,
            sums,
            kept_bytes,
            ops,
            controls,
            hands,
        })
    }
}
