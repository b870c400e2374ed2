//! Health of a set in one word, and what is wrong with it in sentences.

use std::fmt;

use super::report::{Counters, SetReport, VolumeReport};
use crate::shell::shell_word;
use crate::size::show_size;

/// Health of a set. The worst comes last.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Health {
    /// All is well.
    Healthy,
    /// Data is served, but something needs an operator.
    Degraded,
    /// Something can't be served, or not all of it.
    Failed,
}

impl Health {
    /// Health by its word.
    pub fn parse(word: &str) -> Health {
        match word {
            "failed" => Health::Failed,
            "degraded" => Health::Degraded,
            _ => Health::Healthy,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::Failed => "failed",
        })
    }
}

/// Warnings about a set, with the health that each of them means, the worst first.
pub fn warnings(set: &SetReport) -> Vec<(Health, String)> {
    let mut found = Vec::new();
    if let Some(reason) = set.state.strip_prefix("failed: ") {
        let text = format!(
            "the set has failed: {reason}. Its cache {} takes nothing any more; replace it while \
             clients go on, by one that `ubcache make -C NEW` has made: ubcache attach --cache NEW",
            set.cache.path
        );
        found.push((Health::Failed, text));
    }
    if let Some(reason) = set.state.strip_prefix("no cache: ") {
        let text = format!(
            "there is no cache: {reason}. Clean disks are served without it; to give them another \
             one: ubcache attach --cache NEW"
        );
        found.push((Health::Degraded, text));
    }
    for volume in &set.volumes {
        found.extend(warnings_of_volume(set, volume));
    }
    for down in set.down.iter().filter(|down| !down.optional) {
        let text = format!(
            "{name} ({path}) is not served: {}\nwhen that is mended: ubcache add -B {name}={path}",
            down.why,
            name = down.name,
            path = down.path
        );
        found.push((Health::Failed, text));
    }
    found.extend(errors(&set.cache.path, &set.cache.counters));
    for volume in &set.volumes {
        found.extend(errors(&volume.backing.path, &volume.backing.counters));
    }
    for absent in set.absent.iter().filter(|absent| absent.dirty_bytes > 0) {
        let text = format!(
            "the disk {} is absent, and the cache has {} that only it has; serve it: `ubcache add \
             -B DISK`. To give that up: `ubcache forget-disk {} --discard-dirty`",
            absent.uuid,
            show_size(absent.dirty_bytes),
            absent.uuid
        );
        found.push((Health::Degraded, text));
    }
    if set.cache.put_aside_bytes > 0 {
        let text = format!(
            "{}: no room for {} of it, as its file system is full",
            set.cache.path,
            show_size(set.cache.put_aside_bytes)
        );
        found.push((Health::Degraded, text));
    }
    if set.cache.counted && set.cache.flash_room_bytes == 0 && !set.flash.is_empty() {
        let text = format!(
            "{}: no room is left for flash-only volumes, and writes to them fail: discard what is \
             not needed, or remove one: ubcache flash list",
            set.cache.path
        );
        found.push((Health::Degraded, text));
    }
    if set.log.dropped_lines > 0 {
        let text = format!(
            "{} lines of the log were lost, as nobody read them in time",
            set.log.dropped_lines
        );
        found.push((Health::Healthy, text));
    }
    found.sort_by_key(|(health, _)| std::cmp::Reverse(*health));
    found
}

fn warnings_of_volume(set: &SetReport, volume: &VolumeReport) -> Vec<(Health, String)> {
    let (name, dirty) = (&volume.name, show_size(volume.dirty_bytes));
    let mut found = Vec::new();
    match volume.state.as_str() {
        "failed" if volume.dirty_bytes > 0 => found.push((
            Health::Failed,
            format!(
                "the volume {name} has failed: the cache had the only copy of {dirty}. If that \
                 cache can be read again, stop, and start with it. If it is lost, give that data \
                 up{}",
                giving_up(set, volume)
            ),
        )),
        "failed" => found.push((
            Health::Failed,
            format!(
                "the volume {name} has failed: {} takes no writes any more; mend it, and start \
                 again",
                volume.backing.path
            ),
        )),
        "no cache" if set.state == "running" => found.push((
            Health::Degraded,
            format!("the volume {name} is detached; `ubcache attach {name}` gives it its cache"),
        )),
        "no cache" => found.push((
            Health::Degraded,
            format!("the volume {name} goes on without its cache, and has lost nothing"),
        )),
        _ => {}
    }
    if let Some(connection) = &volume.backing.connection
        && connection.state != "connected"
    {
        let path = &volume.backing.path;
        let why = connection.why.as_deref().unwrap_or("no reason is known");
        let then = match connection.state.as_str() {
            "lost" => "what is not cached waits until the server is back",
            "failing" => "what is not cached fails until the server is back",
            _ => {
                "what is not cached fails; have the server give the former export again, and \
                  start again"
            }
        };
        let health = if connection.state == "given up" { Health::Failed } else { Health::Degraded };
        let text = format!("the volume {name} has no connection to {path} ({why}): {then}");
        found.push((health, text));
    }
    match volume.writeback.state.as_str() {
        "failing" => found.push((
            Health::Degraded,
            format!(
                "writeback of the volume {name} to {} fails, and {dirty} are dirty; the log names \
                 the device that has errors",
                volume.backing.path
            ),
        )),
        "off" if volume.dirty_bytes > 0 => found.push((
            Health::Healthy,
            format!(
                "writeback of the volume {name} is switched off, and {dirty} are dirty; to write \
                 them back: ubcache set writeback_running=1 --volume {}",
                shell_word(name)
            ),
        )),
        _ => {}
    }
    if volume.scrub.all_differing_bytes > 0 {
        let text = format!(
            "scrubs of the volume {name} found {} of cached data that differed from {}, and \
             dropped it; the log has the places. Somebody wrote to that disk without ubcache, or \
             one of the devices returns wrong data",
            show_size(volume.scrub.all_differing_bytes),
            volume.backing.path
        );
        found.push((Health::Degraded, text));
    }
    found
}

/// Commands by which a volume goes on without the data that its failed cache had.
fn giving_up(set: &SetReport, volume: &VolumeReport) -> String {
    let (name, path) = (&volume.name, &volume.backing.path);
    // If nothing is whole, no other cache is taken, and the daemon ends with its last client.
    if set.state.starts_with("failed") && set.volumes.iter().all(|it| it.state == "failed") {
        return format!(
            ": `ubcache stop`, `ubcache forget-cache {path} --discard-dirty`, and serve it with \
             another cache, where `ubcache attach {name}` has it cached"
        );
    }
    format!(
        " when the set has another cache: `ubcache remove {name} --keep-dirty`, `ubcache \
         forget-cache {path} --discard-dirty`, `ubcache add -B {name}={path}`, `ubcache attach \
         {name}`"
    )
}

fn errors(path: &str, counters: &Counters) -> Option<(Health, String)> {
    let text = match counters.errors {
        0 => return None,
        1 => format!("{path}: one request failed since the start; the log has it"),
        errors => format!("{path}: {errors} requests failed since the start; the log has them"),
    };
    Some((Health::Degraded, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(set: &SetReport) -> Health {
        warnings(set).first().map_or(Health::Healthy, |(health, _)| *health)
    }

    #[test]
    fn the_worst_warning_is_the_health_of_the_set() {
        let volume = VolumeReport { state: "dirty".into(), ..VolumeReport::default() };
        let mut set = SetReport {
            state: "running".into(),
            volumes: vec![volume.clone(), volume],
            ..SetReport::default()
        };
        assert!(warnings(&set).is_empty());
        set.log.dropped_lines = 1;
        assert_eq!((health(&set), warnings(&set).len()), (Health::Healthy, 1));
        set.volumes[1].backing.counters.errors = 46;
        assert_eq!(health(&set), Health::Degraded);
        assert!(warnings(&set)[0].1.contains("46 requests failed"), "{:?}", warnings(&set));
        set.volumes[0].state = "no cache".into();
        assert_eq!(health(&set), Health::Degraded);
        set.volumes[0].state = "failed".into();
        assert_eq!(health(&set), Health::Failed);
        assert!(Health::parse("failed") > Health::parse("degraded"));
    }
}
