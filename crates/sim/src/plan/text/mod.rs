//! Plans as text, one thing a line. What [`Plan`]'s `Display` prints, its `FromStr` reads.

use std::fmt;
use std::str::FromStr;

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{
    Action, AfterStart, CacheShape, ClientOp, Control, ControlAction, DiskFaults, DriverRun,
    Frontend, Hammer, Hand, LossyDisk, NbdShape, Pace, Plan, Scarcity, Sums, VolumeShape, Zone,
};
use crate::disk::{FlushLoss, Outage, Profile, Rates};
use crate::executor::Policy;

const HEAD: &str = "ubcache-plan 1";

const POLICIES: [(&str, Policy); 4] = [
    ("uniform", Policy::Uniform),
    ("fifo", Policy::Fifo),
    ("ranks", Policy::Ranks),
    ("queues", Policy::Queues),
];
const PROFILES: [(&str, Profile); 5] = [
    ("fast", Profile::Fast),
    ("slow", Profile::Slow),
    ("jitter", Profile::Jitter),
    ("stall", Profile::Stall),
    ("late-writes", Profile::LateWrites),
];

const OUTAGES: [(&str, Outage); 5] = [
    ("errors", Outage::Errors),
    ("read-only", Outage::ReadOnly),
    ("gone", Outage::Gone),
    ("full", Outage::Full),
    ("quota", Outage::Quota),
];

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, other)| other == value).map_or("?", |(name, _)| name)
}

impl FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Policy, String> {
        let policy = POLICIES.iter().find(|(name, _)| *name == text);
        policy.map(|(_, policy)| *policy).ok_or_else(|| format!("no policy is called \"{text}\""))
    }
}

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
        if let Frontend::Nbd(shape) = &self.frontend {
            writeln!(f, "{shape}")?;
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
        if self.sums != Sums::default() {
            writeln!(f, "sums fill-bytes={} copies={}", self.sums.fill_bytes, self.sums.copies)?;
        }
        writeln!(f, "# holds {} KiB of buffers at most", self.buffers_max() / 1024)?;
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
            0 => Ok(()),
            head => write!(f, " head={head}"),
        }
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
            ControlAction::Restart(after) => write!(f, "restart{after}"),
            ControlAction::Driver(run, after) => write!(f, "{run}{after}"),
            ControlAction::PowerFailure(after) => write!(f, "power-failure{after}"),
            ControlAction::HostRestart(after) => write!(f, "host-restart{after}"),
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

/// A text that is not a plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the plan, \"{text}\": {why}")]
pub struct PlanError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// Fault of the line.
    pub why: String,
}

type Parsed<T> = Result<T, String>;

fn number<T: FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("\"{text}\" is not a number in range"))
}

fn micros(text: &str) -> Parsed<Nanos> {
    let digits = text.strip_suffix("us").ok_or_else(|| format!("\"{text}\" does not end in us"))?;
    number(digits).map(Nanos::from_micros)
}

fn span(text: &str) -> Parsed<SectorRange> {
    let (start, sectors) =
        text.split_once('+').ok_or_else(|| format!("\"{text}\" is not START+SECTORS"))?;
    Ok(SectorRange::new(Sector(number(start)?), number(sectors)?))
}

fn by_name<T: Copy>(word: &str, what: &str, names: &[(&str, T)]) -> Parsed<T> {
    let found = names.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| format!("no {what} is called \"{word}\""))
}

/// The words of a line, taken from the front.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn maybe(&mut self) -> Option<&'a str> {
        self.0.next()
    }
    fn word(&mut self) -> Parsed<&'a str> {
        self.0.next().ok_or_else(|| "there is something missing at the end".to_owned())
    }
    fn prefixed<T: FromStr>(&mut self, prefix: &str) -> Parsed<T> {
        let word = self.word()?;
        number(
            word.strip_prefix(prefix)
                .ok_or_else(|| format!("\"{word}\" does not begin with {prefix}"))?,
        )
    }
    /// The value of `name=value`, which has to come next.
    fn field(&mut self, name: &str) -> Parsed<&'a str> {
        let word = self.word()?;
        word.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
            .ok_or_else(|| format!("expected {name}=…, found \"{word}\""))
    }
    /// The value of `name=value`, if that comes next.
    fn maybe_field(&mut self, name: &str) -> Option<&'a str> {
        let mut ahead = self.0.clone();
        let value = ahead.next()?.strip_prefix(name)?.strip_prefix('=')?;
        self.0 = ahead;
        Some(value)
    }
    /// The next word is this one; if not, it stays.
    fn takes(&mut self, word: &str) -> bool {
        let mut ahead = self.0.clone();
        let found = ahead.next() == Some(word);
        if found {
            self.0 = ahead;
        }
        found
    }
    fn num<T: FromStr>(&mut self, name: &str) -> Parsed<T> {
        number(self.field(name)?)
    }
    fn flag(&mut self, name: &str) -> Parsed<bool> {
        Ok(self.num::<u8>(name)? != 0)
    }
    fn named<T: Copy>(&mut self, field: &str, names: &[(&str, T)]) -> Parsed<T> {
        by_name(self.field(field)?, field, names)
    }
    /// The next word, which is one of these names.
    fn known<T: Copy>(&mut self, what: &str, names: &[(&str, T)]) -> Parsed<T> {
        by_name(self.word()?, what, names)
    }
    /// Reads which of the words follow, in any order, to the end of the line.
    fn flags<const N: usize>(&mut self, names: [&str; N]) -> Parsed<[bool; N]> {
        let mut found = [false; N];
        while let Some(word) = self.maybe() {
            let at = names.iter().position(|name| *name == word);
            found[at.ok_or_else(|| format!("\"{word}\" has no meaning here"))?] = true;
        }
        Ok(found)
    }
}

fn parse_cache(words: &mut Words<'_>) -> Parsed<CacheShape> {
    Ok(CacheShape {
        bucket_sectors: words.num("bucket")?,
        block_sectors: words.num("block")?,
        buckets: words.num("buckets")?,
        node_keys: words.num("node-keys")?,
        extents_in_memory: words.num("extents")?,
        lazy_start: words.flag("lazy")?,
        volatile: words.flag("volatile")?,
        discard: words.flag("discard")?,
        profile: words.named("profile", &PROFILES)?,
        generations: match words.maybe_field("generations") {
            None => CacheShape::ALL_GENERATIONS,
            Some(text) => generations(text)?,
        },
    })
}

fn generations(text: &str) -> Parsed<u32> {
    let number: u32 = number(text)?;
    match number.is_power_of_two() && (16..=CacheShape::ALL_GENERATIONS).contains(&number) {
        true => Ok(number),
        false => Err(format!("generations={number} is not a power of two from 16 to 256")),
    }
}

fn parse_nbd(words: &mut Words<'_>) -> Parsed<NbdShape> {
    Ok(NbdShape {
        connections: words.num("connections")?,
        delay_max: Nanos::from_micros(words.num("delay-us")?),
        structured: words.flag("structured")?,
        requests: words.num("requests")?,
        inflight_bytes: words.num("inflight-bytes")?,
        receive_bytes: words.num("receive-bytes")?,
    })
}

fn parse_volume(words: &mut Words<'_>) -> Parsed<VolumeShape> {
    Ok(VolumeShape {
        sectors: words.num("sectors")?,
        mode: words.field("mode")?.to_owned(),
        initial: words.num("initial")?,
        volatile: words.flag("volatile")?,
        discard: words.flag("discard")?,
        block_sectors: words.num("block")?,
        profile: words.named("profile", &PROFILES)?,
        noise: words
            .maybe_field("noise")
            .map(number::<u8>)
            .transpose()?
            .is_some_and(|noise| noise != 0),
        head: words.maybe_field("head").map(number).transpose()?.unwrap_or(0),
    })
}

fn parse_faults(words: &mut Words<'_>) -> Parsed<DiskFaults> {
    let disk = words.num("disk")?;
    let zone = match words.maybe_field("zone") {
        None => Zone::All,
        Some("superblock") => Zone::Superblock,
        Some("journal") if disk == 0 => Zone::Journal,
        Some("journal") => return Err("only disk 0, the cache device, has a journal".to_owned()),
        Some(text) => Zone::Sectors(span(text)?),
    };
    Ok(DiskFaults {
        disk,
        zone,
        rates: Rates {
            read: words.num("read")?,
            write: words.num("write")?,
            flush: words.num("flush")?,
            latent: words.num("latent")?,
        },
        budget: words.num("budget")?,
    })
}

fn parse_after(words: &mut Words<'_>) -> Parsed<AfterStart> {
    let mut after = AfterStart::default();
    while let Some(word) = words.maybe() {
        match word {
            "check" => after.check = true,
            "again" => after.again = Some(micros(words.word()?)?),
            _ => return Err(format!("\"{word}\" has no meaning here")),
        }
    }
    Ok(after)
}

fn parse_driver(words: &mut Words<'_>) -> Parsed<ControlAction> {
    let entries = words.num("entries")?;
    let [read_buffer_first, after_0_1, killed] =
        ["read-buffer-first", "after-0.1", "killed"].map(|name| words.takes(name));
    let run = DriverRun { entries, read_buffer_first, after_0_1, killed };
    Ok(ControlAction::Driver(run, parse_after(words)?))
}

fn parse_hammer(words: &mut Words<'_>) -> Parsed<Hammer> {
    let (volume, range) = (words.prefixed("v")?, span(words.word()?)?);
    match words.word()? {
        "every" => Ok(Hammer { volume, range, period: micros(words.word()?)? }),
        other => Err(format!("expected \"every\", found \"{other}\"")),
    }
}

fn parse_control(words: &mut Words<'_>) -> Parsed<Control> {
    let after_ops = number(words.word()?)?;
    let word = words.word()?;
    let delay =
        micros(word.strip_prefix('+').ok_or_else(|| format!("\"{word}\" does not begin with +"))?)?;
    let action = match words.word()? {
        "set" => ControlAction::Attribute {
            volume: words.prefixed("v")?,
            name: words.word()?.to_owned(),
            value: words.word()?.to_owned(),
        },
        "gc" => ControlAction::CollectGarbage,
        "evict" => ControlAction::EvictClean,
        "restart" => ControlAction::Restart(parse_after(words)?),
        "driver" => parse_driver(words)?,
        "power-failure" => ControlAction::PowerFailure(parse_after(words)?),
        "host-restart" => ControlAction::HostRestart(parse_after(words)?),
        "bad" => ControlAction::Bad { disk: number(words.word()?)?, range: span(words.word()?)? },
        "disconnect" => ControlAction::Disconnect { volume: words.prefixed("v")? },
        "outage" => {
            let disk = number(words.word()?)?;
            let outage = words.known("outage", &OUTAGES)?;
            let span = words.maybe().map(micros).transpose()?;
            if outage == Outage::Gone && span.is_some() {
                return Err("a disk that is gone comes back with the next start only".to_owned());
            }
            ControlAction::Outage { disk, outage, span }
        }
        "no-memory" => ControlAction::NoMemory(micros(words.word()?)?),
        other => return Err(format!("nothing is called \"{other}\"")),
    };
    Ok(Control { after_ops, delay, action })
}

fn parse_op(client: &str, words: &mut Words<'_>) -> Parsed<ClientOp> {
    let client = number(client)?;
    let volume = words.prefixed("v")?;
    let action = match words.word()? {
        "read" => Action::Read(span(words.word()?)?),
        "write" => {
            let (range, [fua]) = (span(words.word()?)?, words.flags(["fua"])?);
            Action::Write { range, fua }
        }
        "discard" => {
            let (range, [fua]) = (span(words.word()?)?, words.flags(["fua"])?);
            Action::Discard { range, fua }
        }
        "zeroes" => {
            let (range, [fua, unmap]) = (span(words.word()?)?, words.flags(["fua", "unmap"])?);
            Action::Zeroes { range, fua, unmap }
        }
        "flush" => Action::Flush,
        "prefetch" => Action::Prefetch(span(words.word()?)?),
        "status" => Action::Status(span(words.word()?)?),
        "sleep" => Action::Sleep(micros(words.word()?)?),
        other => return Err(format!("nothing is called \"{other}\"")),
    };
    Ok(ClientOp { client, volume, action })
}

/// A plan as far as it has been read.
#[derive(Default)]
struct Draft {
    world: Option<(u64, Policy, Nanos, Nanos, bool)>,
    cache: Option<CacheShape>,
    nbd: Option<NbdShape>,
    volumes: Vec<VolumeShape>,
    faults: Vec<DiskFaults>,
    lossy: Vec<LossyDisk>,
    memory: Scarcity,
    pace: Pace,
    hammers: Vec<Hammer>,
    scribble: bool,
    sums: Sums,
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
            "nbd" => self.nbd = Some(parse_nbd(&mut words)?),
            "volume" => self.volumes.push(parse_volume(&mut words)?),
            "faults" => self.faults.push(parse_faults(&mut words)?),
            "flush-loss" => {
                let disk = words.num("disk")?;
                self.lossy.push(LossyDisk { disk, loss: FlushLoss { late: words.num("late")? } });
            }
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

impl Action {
    /// The sectors that it is about.
    pub fn range(&self) -> Option<SectorRange> {
        match self {
            Action::Read(range) | Action::Prefetch(range) | Action::Status(range) => Some(*range),
            Action::Write { range, .. }
            | Action::Discard { range, .. }
            | Action::Zeroes { range, .. } => Some(*range),
            Action::Flush | Action::Sleep(_) => None,
        }
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
            nbd,
            volumes,
            faults,
            lossy,
            memory,
            pace,
            sums,
            scribble,
            hammers,
            ops,
            controls,
            hands,
            ..
        } = draft;
        let frontend = nbd.map_or(Frontend::Direct, Frontend::Nbd);
        if volumes.is_empty() {
            return Err(missing("volume"));
        }
        let broken = controls.iter().filter_map(|control| control.action.broken_disk());
        let mut disks = broken
            .chain(faults.iter().map(|it| it.disk))
            .chain(hands.iter().map(|it| it.disk))
            .chain(lossy.iter().map(|it| it.disk));
        if let Some(disk) = disks.find(|disk| *disk > volumes.len()) {
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
            memory,
            pace,
            hammers,
            scribble,
            sums,
            ops,
            controls,
            hands,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::draw::{DrawOptions, draw};

    #[test]
    fn plans_print_and_parse() {
        for seed in 0..200 {
            let plan = draw(seed, DrawOptions::default());
            let text = plan.to_string();
            assert_eq!(text.parse::<Plan>().as_ref(), Ok(&plan), "{text}");
        }
    }

    #[test]
    fn parse_error_of_a_plan_names_its_line() {
        let mut text = draw(1, DrawOptions::default()).to_string();
        text.push_str("c0 v0 read 12\n");
        let error = text.parse::<Plan>().expect_err("the last line has no length");
        assert_eq!((error.line, error.text.as_str()), (text.lines().count(), "c0 v0 read 12"));
        assert!("".parse::<Plan>().is_err());
        let plan = draw(1, DrawOptions::default()).to_string();
        for line in [
            "at 1 +1us outage 0 gone 5us",
            "at 1 +1us outage 9 errors",
            "at 1 +1us outage 0 tired",
            "at 1 +1us disconnect v9",
            "hand 1 swap 0 pray",
            "hand 1 copy 9",
            "hand 1 cut 0 8",
            "flush-loss disk=9 late=0",
            "nbd connections=1",
            "hammer v0 0+99999999 every 5us",
            "hammer v9 0+8 every 5us",
            "hammer v0 0+8",
            "faults disk=1 zone=journal read=1 write=1 flush=1 latent=1 budget=1",
            "faults disk=1 zone=5 read=1 write=1 flush=1 latent=1 budget=1",
        ] {
            assert!(format!("{plan}{line}\n").parse::<Plan>().is_err(), "{line}");
        }
    }
}
