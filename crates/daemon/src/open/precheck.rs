//! Checks before the reactor starts, so that refusals name devices and the remedy.
//!
//! Nothing is changed or locked here: the devices are read, then opened for good by `serve`.

use std::path::{Path, PathBuf};

use ubcache_format::{BackingState, SECTOR_BYTES, Superblock};

use crate::backing::BackingName;
use crate::config::{Named, ServeConfig, export_names};
use crate::failure::Failure;
use crate::open::header::{FoundHeader, look_backing};
use crate::open::superblock::{ExpectedKind, look};

/// The devices of a set, as they are found at the start.
#[derive(Debug)]
pub struct Members {
    /// Path of the cache device; empty if none was given.
    pub cache_path: PathBuf,
    /// Superblock of the cache device, or the reason why there is none, if it is optional.
    pub cache: Result<Superblock, Failure>,
    /// The backing devices that can be served, in their order; at least one.
    pub backings: Vec<Member>,
    /// Those that can't.
    pub down: Vec<Down>,
}

/// A backing device that is going to be served.
#[derive(Debug)]
pub struct Member {
    /// Its path.
    pub path: PathBuf,
    /// The name given to its export.
    pub given: Option<String>,
    /// Its superblock.
    pub superblock: Superblock,
    /// Its header, if the superblock is not on it.
    pub header: Option<FoundHeader>,
}

/// A backing device that was named, and can't be served: the others are.
#[derive(Clone, Debug)]
pub struct Down {
    /// Its path.
    pub path: PathBuf,
    /// The name given to its export, else its file name.
    pub name: String,
    /// The name given to it, if one was.
    pub given: Option<String>,
    /// The reason.
    pub why: Failure,
    /// It may be missing, and is.
    pub optional: bool,
}

impl Down {
    /// A backing device that is left out.
    pub fn new(path: &Path, given: Option<&str>, why: Failure) -> Down {
        let file = || BackingName::file_name(path);
        let given = given.map(str::to_owned);
        let name = given.clone().or_else(file).unwrap_or_else(|| "disk".to_owned());
        Down { path: path.to_owned(), name, given, why, optional: false }
    }
}

/// Checks all devices. A backing device that can't be served is left out, unless it is the only
/// one; wrong usage is an error.
pub fn precheck(config: &ServeConfig) -> Result<Members, Failure> {
    if config.backings.is_empty() && (config.cache.is_none() || config.cache_optional) {
        return Err(
            Failure::usage("-B", "no backing device given").expected("-B DEVICE, once or more")
        );
    }
    let cache = match &config.cache {
        Some(path) => look(path, ExpectedKind::Cache).map(|(_, superblock)| superblock),
        None if config.cache_optional => Err(Failure::usage("-C", "no cache device given")),
        None => {
            let given = config.names.first().and_then(Option::as_deref);
            return Err(without_cache(&config.backings[0], given, &config.headers));
        }
    };
    let cache_path = config.cache.clone().unwrap_or_default();
    let cache = match cache {
        Err(why) if !config.cache_optional && look(&cache_path, ExpectedKind::Any).is_ok() => {
            return Err(why);
        }
        Err(why) if !config.cache_optional => {
            return Err(why.more_advice(
                "If it is lost, complete disks are served without it: the same command with \
                 --cache-optional; another one takes its place while they are: ubcache attach \
                 --cache NEW",
            ));
        }
        cache => cache,
    };
    let mut backings: Vec<Member> = Vec::new();
    let mut down = Vec::new();
    let names = config.names.iter().map(Option::as_deref).chain(std::iter::repeat(None));
    for (path, given) in config.backings.iter().zip(names) {
        if let Some(missing) = config.not_found.iter().find(|missing| missing.path == *path) {
            let optional = missing.optional;
            down.push(Down { optional, ..Down::new(path, given, missing.why.clone()) });
            continue;
        }
        BackingName::parse(path)?;
        let seen = look_backing(path, &config.headers, config.cache.as_deref());
        let found = seen.and_then(|(superblock, header)| {
            match &cache {
                Ok(cache) => check_member(&cache_path, cache, (path, given), &superblock)?,
                Err(_) if superblock.state() == BackingState::Dirty => {
                    return Err(dirty_without_cache(path, given, &superblock));
                }
                Err(_) => {}
            }
            Ok((superblock, header))
        });
        let (superblock, header) = match found {
            Ok(found) => found,
            Err(why) => {
                down.push(Down::new(path, given, why));
                continue;
            }
        };
        if let Some(other) = backings.iter().find(|it| it.superblock.uuid == superblock.uuid) {
            return Err(Failure::refused(path, "this backing device is given twice")
                .found(format_args!(
                    "UUID {}, the same as {}",
                    superblock.uuid,
                    other.path.display()
                ))
                .expected(
                    "every backing device once; a device and its copy can't be served together",
                ));
        }
        let given = given.map(str::to_owned);
        backings.push(Member { path: path.clone(), given, superblock, header });
    }
    match down.first() {
        Some(first) if backings.is_empty() => Err(first.why.clone()),
        _ => Ok(Members { cache_path, cache, backings, down }),
    }
}

fn check_member(
    cache_path: &Path,
    cache: &Superblock,
    (path, given): (&Path, Option<&str>),
    backing: &Superblock,
) -> Result<(), Failure> {
    let attached = matches!(backing.state(), BackingState::Clean | BackingState::Dirty);
    let is_dirty = backing.state() == BackingState::Dirty;
    if attached && backing.set_uuid != cache.set_uuid {
        let failure = Failure::refused(path, "the backing device belongs to another cache set")
            .found(format_args!(
                "state {}, set {}",
                backing.state().super_show_word(),
                backing.set_uuid
            ))
            .expected(format_args!(
                "set {}, that of the cache {}",
                cache.set_uuid,
                cache_path.display()
            ));
        return Err(failure.advice(if is_dirty {
            dirty_advice(path, given, backing)
        } else {
            let then = format!("serve it with {}", cache_path.display());
            lost_advice(path, given, backing, &then)
        }));
    }
    if is_dirty && !cache.sync() {
        return Err(Failure::refused(
            path,
            "the backing device is dirty, but its cache is missing",
        )
        .found(format_args!(
            "the newest data is in a cache of set {}; {} has that UUID, but is empty: it was made \
             anew and never started",
            backing.set_uuid,
            cache_path.display()
        ))
        .expected("the former cache device of this backing device")
        .advice(dirty_advice(path, given, backing)));
    }
    if backing.block_sectors < cache.block_sectors {
        let (of_disk, of_cache) = (backing.block_sectors, cache.block_sectors);
        return Err(blocks_too_small(path, of_disk, cache_path, of_cache));
    }
    Ok(())
}

/// The failure for a backing device whose blocks, in sectors, are smaller than those of the cache.
pub(crate) fn blocks_too_small(
    path: &Path,
    of_disk: u32,
    cache_path: &Path,
    of_cache: u32,
) -> Failure {
    Failure::refused(path, "its blocks are smaller than those of the cache")
        .found(format_args!("blocks of {} bytes", of_disk * 512))
        .expected(format_args!("at least {} bytes", of_cache * 512))
        .advice(format_args!(
            "make the cache with smaller blocks: ubcache make --wipe-bcache --block {} -C {}",
            of_disk * 512,
            cache_path.display()
        ))
}

fn without_cache(path: &Path, given: Option<&str>, headers: &[PathBuf]) -> Failure {
    let backing = match look_backing(path, headers, None) {
        Ok((backing, _)) => backing,
        Err(failure) => return failure,
    };
    if backing.state() == BackingState::Dirty {
        return dirty_without_cache(path, given, &backing);
    }
    if backing.state() != BackingState::Clean {
        return Failure::usage("-C", "no cache device given")
            .expected("-C DEVICE: any cache; this backing device is not attached to one")
            .advice(format_args!("make one with: {}", make_for(&backing, "DEVICE")));
    }
    Failure::usage("-C", "no cache device given")
        .expected(format_args!("-C DEVICE: the cache of set {}", backing.set_uuid))
        .advice(lost_advice(
            path,
            given,
            &backing,
            &format!("serve it with a new one: {}", make_for(&backing, "NEW")),
        ))
}

pub(crate) fn dirty_without_cache(
    path: &Path,
    given: Option<&str>,
    backing: &Superblock,
) -> Failure {
    let set = backing.set_uuid;
    Failure::refused(path, "the backing device is dirty, but its cache is missing")
        .found(format_args!("state dirty: the newest data is only in the cache of set {set}"))
        .expected("the cache device of that set, after -C")
        .advice(dirty_advice(path, given, backing))
}

/// The command that makes a cache for a backing device: its blocks must not be larger.
pub(crate) fn make_for(backing: &Superblock, cache: &str) -> String {
    const DEFAULT_BYTES: u32 = 4096;
    match backing.block_sectors * SECTOR_BYTES as u32 {
        DEFAULT_BYTES => format!("ubcache make -C {cache}"),
        bytes => format!("ubcache make --block {bytes} -C {cache}"),
    }
}

/// Advice for a clean backing device whose cache may be lost. The disk has everything.
fn lost_advice(path: &Path, given: Option<&str>, backing: &Superblock, then: &str) -> String {
    let export = export_of(path, given, backing);
    format!(
        "find the cache device: `ubcache show DEVICE` prints cset.uuid {}. If it is lost, no data \
         is lost with it: ubcache forget-cache {}, then {then}; served with that, it is cached \
         after ubcache attach {export}",
        backing.set_uuid,
        path.display()
    )
}

fn dirty_advice(path: &Path, given: Option<&str>, backing: &Superblock) -> String {
    let export = export_of(path, given, backing);
    format!(
        "find the cache device: `ubcache show DEVICE` prints cset.uuid {}. If it is lost, so is \
         its dirty data; to go on with the older data of the disk: ubcache forget-cache {} \
         --discard-dirty; served with another cache, it is cached after ubcache attach {export}",
        backing.set_uuid,
        path.display()
    )
}

/// The name of the export of a backing device.
fn export_of(path: &Path, given: Option<&str>, backing: &Superblock) -> String {
    let names = export_names(&[Named { given, label: &backing.label_str(), path }]);
    names.ok().and_then(|mut names| names.pop()).unwrap_or_default()
}
