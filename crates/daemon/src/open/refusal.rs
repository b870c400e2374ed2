//! Messages for refusals of the engine.

use std::path::Path;

use ubcache_engine::EngineError;
use ubcache_format::SECTOR_BYTES;

use crate::failure::Failure;

/// The failure for a backing device that the engine refuses.
pub(crate) fn member_failure(
    cache: &Path,
    path: &Path,
    name: &str,
    error: &EngineError,
) -> Failure {
    match error {
        EngineError::OlderCopy { apart, .. } => {
            let what = format_args!(
                "this disk and the cache {} are not of one \
                run",
                cache.display()
            );
            Failure::refused(path, what)
                .found(apart)
                .expected("the same run on both, as every start and every clean stop leaves it")
                .advice(format_args!(
                    "find the newer one and name that. To go on without it: --drop-clean-cache \
                     drops the data of this disk in {cache} if none of it is dirty; \
                     --believe-disk {name} drops dirty data, too; --believe-cache {name} keeps \
                     dirty data, and writes it over the disk. `ubcache check {cache} -B {path}` \
                     prints how much it is; nothing was changed",
                    cache = cache.display(),
                    path = path.display()
                ))
        }
        EngineError::WrittenElsewhere { found, expected, .. } => Failure::refused(
            path,
            "the disk was written without its cache, or is another one, and the cache has dirty \
             data of it",
        )
        .found(found)
        .expected(expected)
        .advice(format_args!(
            "name the disk as the last run left it. To go on with this one: --believe-disk {name} \
             keeps the data of the disk, and gives the dirty data up; --believe-cache {name} \
             writes the dirty data over the disk, which is right only if the other writer left \
             those places alone. `ubcache check {cache} -B {path}` prints how much it is; nothing \
             was changed",
            cache = cache.display(),
            path = path.display()
        )),
        EngineError::Resized { found, expected, .. } => {
            let grown = found > expected;
            let what = if grown { "the disk has grown" } else { "the disk has become shorter" };
            Failure::refused(path, format_args!("{what} since the cache was used with it"))
                .found(format_args!("{} bytes", found * SECTOR_BYTES))
                .expected(format_args!("{} bytes", expected * SECTOR_BYTES))
                .advice(format_args!(
                    "name the right disk, or give it its former size. To accept the new size: \
                     --drop-clean-cache drops what is cached of it if none of that is dirty; \
                     --believe-cache {name} keeps dirty data; --believe-disk {name} gives it up. \
                     Nothing was changed"
                ))
        }
        EngineError::DirtyElsewhere { set, .. } => Failure::refused(
            path,
            format_args!(
                "the disk is dirty, and the cache {} has no record of it",
                cache.display()
            ),
        )
        .found(format_args!("state dirty, and no record of the disk in set {set}"))
        .expected("the cache that has the newest data of the disk")
        .advice(format_args!(
            "find that cache; nothing was changed. If that data is lost, or was given up (ubcache \
             forget-disk), go on with the data of the disk: ubcache forget-cache {} \
             --discard-dirty",
            path.display()
        )),
        EngineError::WouldLose(why) => Failure::refused(
            path,
            format_args!("--drop-clean-cache is not enough: {why}"),
        )
        .expected("a disk without dirty data in the cache")
        .advice(format_args!(
            "choose: --believe-disk {name} keeps the data of the disk, --believe-cache {name} the \
             cache's dirty data"
        )),
        EngineError::BeyondEnd { dirty, last, end } => Failure::refused(
            path,
            "the disk is shorter than it was, and the cache has dirty data \
                beyond its end",
        )
        .found(format_args!(
            "the disk ends at byte {}; {} bytes of dirty data beyond that, up to byte {}",
            end.bytes(),
            dirty * SECTOR_BYTES,
            last.bytes()
        ))
        .expected(format_args!("at least {} bytes", last.bytes()))
        .advice(format_args!(
            "restore its full size. To give up all dirty data of this disk: ubcache forget-cache \
             {} --discard-dirty",
            path.display()
        )),
        error => engine_failure(path, error),
    }
}

/// The failure for a refusal of the engine.
pub(crate) fn engine_failure(path: &Path, error: &EngineError) -> Failure {
    match error {
        EngineError::Format { what, at, source } => {
            let place =
                at.map(|at| format!(" (sector {at}, byte {})", at.bytes())).unwrap_or_default();
            Failure::refused(path, format_args!("damaged: {what}{place}"))
                .found(source)
                .expected("metadata as the last run left it")
                .advice(
                    "nothing was changed; copy the cache and the backing devices before any other \
                     attempt",
                )
        }
        error => Failure::refused(path, error),
    }
}
