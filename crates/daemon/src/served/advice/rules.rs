//! Rules: which numbers speak for which change.

use super::report::{Advice, CacheTraffic, RunShare, VolumeTraffic};
use crate::shell::shell_word;
use crate::size::show_size;

/// A gain in hit ratio that is worth a larger cache.
const WORTH: f64 = 0.05;
/// A loss of hit ratio that nobody notices.
const UNNOTICED: f64 = 0.01;
/// A share of all bytes that is worth a change.
const SHARE: f64 = 0.1;

/// All advice, the most useful first.
pub(crate) fn advice(cache: &CacheTraffic, volumes: &[VolumeTraffic]) -> Vec<Advice> {
    let mut found: Vec<Advice> = volumes.iter().filter_map(mode).collect();
    found.extend(cache_size(cache, volumes));
    found.extend(volumes.iter().filter_map(|volume| cutoff(cache, volume)));
    found.extend(volumes.iter().filter_map(|volume| dirty(cache, volume)));
    found
}

/// Estimated hit ratios for half, once, twice and four times the cache, if there are any.
fn estimates(cache: &CacheTraffic) -> Option<[f64; 4]> {
    let ratio = |index: usize| cache.sizes.get(index)?.read_hit_ratio;
    Some([ratio(0)?, ratio(1)?, ratio(2)?, ratio(3)?])
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

fn set(volume: &VolumeTraffic, assignment: &str) -> String {
    format!("ubcache set {assignment} --volume {}", shell_word(&volume.volume))
}

fn cache_size(cache: &CacheTraffic, volumes: &[VolumeTraffic]) -> Option<Advice> {
    let [half, once, twice, four_times] = estimates(cache)?;
    let (bytes, ratio) = match () {
        () if twice - once >= WORTH => (cache.size_bytes * 2, twice),
        () if four_times - once >= WORTH => (cache.size_bytes * 4, four_times),
        // All of the cache was used several times over.
        () if once - half <= UNNOTICED && cache.read_bytes / 4 >= cache.size_bytes => {
            (cache.size_bytes / 2, half)
        }
        () => return None,
    };
    let detach = volumes.iter().map(|it| format!("ubcache detach {}", shell_word(&it.volume)));
    let detach = detach.collect::<Vec<_>>().join(" && ");
    Some(Advice {
        volume: None,
        subject: "cache_size".to_owned(),
        reason: format!(
            "a cache of {} would answer {} of the bytes read, one of {} answers {} (estimated)",
            show_size(bytes),
            percent(ratio),
            show_size(cache.size_bytes),
            percent(once)
        ),
        command: format!("ubcache make -C NEW && {detach} && ubcache attach --cache NEW"),
    })
}

/// Long runs go to the cache if it has room for them, and past it if it has not.
fn cutoff(cache: &CacheTraffic, volume: &VolumeTraffic) -> Option<Advice> {
    let [half, once, twice, _] = estimates(cache)?;
    let all = volume.read_bytes + volume.written_bytes;
    let now = volume.sequential_cutoff_bytes;
    let advice = |bytes: u64, reason: String| Advice {
        volume: Some(volume.volume.clone()),
        subject: "sequential_cutoff".to_owned(),
        reason,
        command: set(volume, &format!("sequential_cutoff={}", show_size(bytes))),
    };
    let past = share(volume.sequential_bytes, all);
    if now > 0 && past >= SHARE && once - half <= UNNOTICED {
        let fits = |it: &&RunShare| it.cutoff_bytes > now && share(it.bytes, all) < SHARE;
        let longer = volume.runs.iter().find(fits).map_or(0, |it| it.cutoff_bytes);
        return Some(advice(
            longer,
            format!(
                "{} of the bytes go past the cache in runs of {} or more, and it has room for \
                 them: half of it would answer {} of the bytes read, all of it answers {}",
                percent(past),
                show_size(now),
                percent(half),
                percent(once)
            ),
        ));
    }
    let shorter = volume.runs.iter().find(|it| now == 0 || it.cutoff_bytes < now)?;
    let long = share(shorter.bytes, all);
    (twice - once >= WORTH && long >= SHARE).then(|| {
        advice(
            shorter.cutoff_bytes,
            format!(
                "{} of the bytes are in runs of {} or more, and the cache is too small: twice its \
                 size would answer {} of the bytes read instead of {}",
                percent(long),
                show_size(shorter.cutoff_bytes),
                percent(twice),
                percent(once)
            ),
        )
    })
}

fn mode(volume: &VolumeTraffic) -> Option<Advice> {
    let all = volume.read_bytes + volume.written_bytes;
    let advice = |mode: &str, reason: String| {
        Some(Advice {
            volume: Some(volume.volume.clone()),
            subject: "cache_mode".to_owned(),
            reason,
            command: set(volume, &format!("cache_mode={mode}")),
        })
    };
    let written = share(volume.written_bytes, all);
    match volume.mode.as_str() {
        "none" if all > 0 => advice(
            "writethrough",
            format!("{} were read and written past the cache", show_size(all)),
        ),
        "writethrough" => {
            let (slow, fast) = (volume.write_through_p50_ns?, volume.hit_p50_ns?);
            let worth = written >= SHARE && slow > 4 * fast;
            worth.then(|| {
                let reason = format!(
                    "{} of the bytes are written, in {} µs at the median, where hits take {} µs; \
                     in writeback the cache takes them, and has the only copy for a while",
                    percent(written),
                    slow / 1000,
                    fast / 1000
                );
                advice("writeback", reason)
            })?
        }
        _ => None,
    }
}

/// Writes that writeback had no room for.
fn dirty(cache: &CacheTraffic, volume: &VolumeTraffic) -> Option<Advice> {
    let refused = share(volume.refused_writes, volume.refused_writes + volume.writeback_writes);
    (volume.mode == "writeback" && refused >= SHARE).then(|| Advice {
        volume: Some(volume.volume.clone()),
        subject: "writeback_percent".to_owned(),
        reason: format!(
            "{} of the writes found too much of the cache dirty, and went to the disk as well; {} \
             of {} are dirty now",
            percent(refused),
            show_size(volume.dirty_bytes),
            show_size(cache.size_bytes)
        ),
        command: set(volume, "writeback_percent=5"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::advice::report::SizeEstimate;

    fn cache(ratios: [f64; 4]) -> CacheTraffic {
        let size = |(index, ratio): (usize, &f64)| SizeEstimate {
            cache_bytes: 1 << (29 + index),
            read_hit_ratio: Some(*ratio),
            write_hit_ratio: None,
        };
        CacheTraffic {
            size_bytes: 1 << 30,
            read_bytes: 10 << 30,
            sizes: ratios.iter().enumerate().map(size).collect(),
            ..CacheTraffic::default()
        }
    }

    fn volume(mode: &str) -> VolumeTraffic {
        VolumeTraffic {
            volume: "a disk".into(),
            mode: mode.into(),
            sequential_cutoff_bytes: 4 << 20,
            read_bytes: 900,
            written_bytes: 100,
            runs: [(1 << 20, 400), (4 << 20, 300), (16 << 20, 50)]
                .map(|(cutoff_bytes, bytes)| RunShare { cutoff_bytes, bytes })
                .to_vec(),
            ..VolumeTraffic::default()
        }
    }

    fn commands(cache: &CacheTraffic, volume: VolumeTraffic) -> Vec<String> {
        advice(cache, &[volume]).into_iter().map(|it| it.command).collect()
    }

    #[test]
    fn numbers_speak_for_the_change_that_fits() {
        let flat = cache([0.8, 0.8, 0.81, 0.82]);
        let steep = cache([0.3, 0.5, 0.7, 0.8]);
        let fits = cache([0.6, 0.7, 0.72, 0.73]);
        assert_eq!(commands(&fits, volume("writeback")), Vec::<String>::new());
        let larger = "ubcache make -C NEW && ubcache detach 'a disk' && ubcache attach --cache NEW";
        let shorter = "ubcache set sequential_cutoff=1M --volume 'a disk'";
        assert_eq!(commands(&steep, volume("writeback")), [larger, shorter]);
        let past = VolumeTraffic { sequential_bytes: 300, ..volume("writeback") };
        let longer = "ubcache set sequential_cutoff=16M --volume 'a disk'";
        assert_eq!(commands(&flat, past), [larger, longer]);
        let slow = VolumeTraffic {
            write_through_p50_ns: Some(9_000_000),
            hit_p50_ns: Some(100_000),
            ..volume("writethrough")
        };
        let writeback = "ubcache set cache_mode=writeback --volume 'a disk'";
        assert_eq!(commands(&fits, slow), [writeback]);
        let full =
            VolumeTraffic { refused_writes: 30, writeback_writes: 70, ..volume("writeback") };
        let clean = "ubcache set writeback_percent=5 --volume 'a disk'";
        assert_eq!(commands(&fits, full), [clean]);
        let none = "ubcache set cache_mode=writethrough --volume 'a disk'";
        assert_eq!(commands(&fits, volume("none")), [none]);
    }

    #[test]
    fn a_small_sample_says_nothing_about_sizes() {
        let mut few = cache([0.3, 0.5, 0.7, 0.8]);
        few.sizes.iter_mut().for_each(|size| size.read_hit_ratio = None);
        assert_eq!(advice(&few, &[volume("writeback")]), []);
    }
}
