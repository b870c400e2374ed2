//! The lines of a plan, each read by itself.

use ubcache_env::Nanos;

use super::words::{Parsed, Words, micros, number, span};
use super::{OUTAGES, PROFILES};
use crate::disk::{Outage, Rates};
use crate::plan::{
    Action, AfterStart, CacheShape, ClientOp, Control, ControlAction, DiskFaults, DriverRun,
    Hammer, NbdShape, UblkShape, VhostShape, VolumeShape, Zone,
};

pub(super) fn parse_cache(words: &mut Words<'_>) -> Parsed<CacheShape> {
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

pub(super) fn generations(text: &str) -> Parsed<u32> {
    let number: u32 = number(text)?;
    match number.is_power_of_two() && (16..=CacheShape::ALL_GENERATIONS).contains(&number) {
        true => Ok(number),
        false => Err(format!("generations={number} is not a power of two from 16 to 256")),
    }
}

pub(super) fn parse_nbd(words: &mut Words<'_>) -> Parsed<NbdShape> {
    Ok(NbdShape {
        connections: words.num("connections")?,
        delay_max: Nanos::from_micros(words.num("delay-us")?),
        structured: words.flag("structured")?,
        requests: words.num("requests")?,
        inflight_bytes: words.num("inflight-bytes")?,
        receive_bytes: words.num("receive-bytes")?,
    })
}

pub(super) fn parse_ublk(words: &mut Words<'_>) -> Parsed<UblkShape> {
    Ok(UblkShape {
        queues: words.num("queues")?,
        depth: words.num("depth")?,
        max_io_bytes: words.num("max-io-bytes")?,
        user_copy: words.flag("user-copy")?,
        places: words.flag("places")?,
        delay_max: Nanos::from_micros(words.num("delay-us")?),
    })
}

pub(super) fn parse_vhost(words: &mut Words<'_>) -> Parsed<VhostShape> {
    Ok(VhostShape {
        queues: words.num("queues")?,
        slots: words.num("slots")?,
        delay_max: Nanos::from_micros(words.num("delay-us")?),
        pieces: words.num("pieces")?,
        indirect: words.flag("indirect")?,
        event_idx: words.flag("event-idx")?,
        memory_bytes: words.num("memory-bytes")?,
    })
}

pub(super) fn parse_volume(words: &mut Words<'_>) -> Parsed<VolumeShape> {
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
        flash: words
            .maybe_field("flash")
            .map(number::<u8>)
            .transpose()?
            .is_some_and(|flash| flash != 0),
        distant: words
            .maybe_field("distant")
            .map(number::<u8>)
            .transpose()?
            .is_some_and(|distant| distant != 0),
    })
}

pub(super) fn parse_faults(words: &mut Words<'_>) -> Parsed<DiskFaults> {
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

pub(super) fn parse_after(words: &mut Words<'_>) -> Parsed<AfterStart> {
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

pub(super) fn parse_driver(words: &mut Words<'_>) -> Parsed<ControlAction> {
    let entries = words.num("entries")?;
    let [read_buffer_first, after_0_1, killed] =
        ["read-buffer-first", "after-0.1", "killed"].map(|name| words.takes(name));
    let run = DriverRun { entries, read_buffer_first, after_0_1, killed };
    Ok(ControlAction::Driver(run, parse_after(words)?))
}

pub(super) fn parse_hammer(words: &mut Words<'_>) -> Parsed<Hammer> {
    let (volume, range) = (words.prefixed("v")?, span(words.word()?)?);
    match words.word()? {
        "every" => Ok(Hammer { volume, range, period: micros(words.word()?)? }),
        other => Err(format!("expected \"every\", found \"{other}\"")),
    }
}

pub(super) fn parse_control(words: &mut Words<'_>) -> Parsed<Control> {
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
        "grow-cache" => ControlAction::GrowCache(number(words.word()?)?),
        "shrink-cache" => {
            let buckets = number(words.word()?)?;
            ControlAction::ShrinkCache(buckets, words.maybe().map(micros).transpose()?)
        }
        "restart" => ControlAction::Restart(parse_after(words)?),
        "driver" => parse_driver(words)?,
        "power-failure" => ControlAction::PowerFailure(parse_after(words)?),
        "host-restart" => ControlAction::HostRestart(parse_after(words)?),
        "process-death" => {
            let aside = words.takes("aside");
            ControlAction::ProcessDeath { aside, after: parse_after(words)? }
        }
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

pub(super) fn parse_op(client: &str, words: &mut Words<'_>) -> Parsed<ClientOp> {
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
