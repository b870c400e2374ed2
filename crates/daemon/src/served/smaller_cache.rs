//! A cache that becomes smaller, while its set runs or not (A12).

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use ubcache_engine::{EngineError, Resized, ShrinkEnd};
use ubcache_env::Priority;
use ubcache_env::local::Event;
use ubcache_format::SECTOR_BYTES;

use super::daemon::Daemon;
use super::resize_alone::resize_alone;
use super::shrinking::Shrinking;
use super::world::World;
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::size::show_size;

impl<W: World> Daemon<W> {
    /// Makes the cache smaller; returns words about it, when it is or at once. It goes on without
    /// whoever asked for it.
    pub async fn shrink_cache(self: &Rc<Self>, bytes: u64, wait: bool) -> Result<String, Refusal> {
        let path = self.cache_path.borrow().clone();
        let under_way = self.shrinking.borrow().clone();
        let shrinking = match under_way {
            Some(shrinking) if shrinking.bytes == bytes => shrinking,
            Some(shrinking) => {
                let said = format!(
                    "{} is becoming smaller already, to {}",
                    path.display(),
                    show_size(shrinking.engine.progress().after_bytes)
                );
                return Err(Refusal::new(Kind::Conflict, said)
                    .advice("wait for its end, or: ubcache resize --cache --cancel"));
            }
            None => self.begin_shrink(&path, bytes).await?,
        };
        if !wait {
            let after = show_size(shrinking.engine.progress().after_bytes);
            return Ok(format!(
                "{}: becomes smaller, to {after}; `ubcache status` shows it",
                path.display()
            ));
        }
        shrinking.ended.wait().await;
        let result = shrinking.result.borrow().clone();
        result.unwrap_or_else(|| Err(Refusal::new(Kind::Failed, "the resize has no result")))
    }

    /// Has the cache keep its size; returns words about it.
    pub async fn cancel_shrink(&self) -> Result<String, Refusal> {
        let path = self.cache_path.borrow().display().to_string();
        let under_way = self.shrinking.borrow().clone();
        let Some(shrinking) = under_way else {
            return Err(Refusal::new(Kind::Conflict, format!("{path} is not becoming smaller")));
        };
        shrinking.engine.give_up();
        shrinking.ended.wait().await;
        match shrinking.result.borrow().as_ref() {
            Some(Ok(said)) => Err(Refusal::new(Kind::Conflict, said).found("it was too late")),
            _ => Ok(format!("{path}: keeps its size")),
        }
    }

    /// Ends it, for a stop: the next start has the former size, and it can be begun again.
    pub(crate) async fn end_shrink(&self) {
        let under_way = self.shrinking.borrow().clone();
        if let Some(shrinking) = under_way {
            shrinking.engine.give_up();
            shrinking.ended.wait().await;
        }
    }

    async fn begin_shrink(
        self: &Rc<Self>,
        path: &Path,
        bytes: u64,
    ) -> Result<Rc<Shrinking<W>>, Refusal> {
        let _one = self.change_membership().await?;
        if let Some(why) = self.no_cache.borrow().as_ref() {
            return Err(Refusal::new(Kind::Conflict, format_args!("there is no cache: {why}")));
        }
        if self.is_moving() {
            let said = "a volume is being moved to another disk";
            return Err(Refusal::new(Kind::Conflict, said)
                .advice("wait for its end, or: ubcache move EXPORT --cancel"));
        }
        if self.shrinking.borrow().is_some() {
            return Err(Refusal::new(Kind::Busy, "the cache is becoming smaller already"));
        }
        let begun = self.set().begin_shrink(bytes).await;
        let engine = begun.map_err(|error| refusal(path, &error))?;
        let after = engine.progress().after_bytes;
        tracing::info!(cache = %path.display(), bytes = after, "becomes smaller");
        let shrinking = Rc::new(Shrinking {
            bytes,
            engine,
            began: self.world.now(),
            result: RefCell::default(),
            ended: Event::default(),
        });
        *self.shrinking.borrow_mut() = Some(shrinking.clone());
        let (daemon, of_task, path) = (self.clone(), shrinking.clone(), path.to_owned());
        self.world.spawn(Priority::Background, async move {
            let result = of_task.engine.run().await;
            let result = result.map(|resized| smaller(&path, resized));
            let result = result.map_err(|error| refusal(&path, &error));
            match &result {
                Ok(said) => tracing::info!("{said}"),
                Err(why) => tracing::error!("the cache did not become smaller: {why}"),
            }
            *of_task.result.borrow_mut() = Some(result);
            *daemon.shrinking.borrow_mut() = None;
            of_task.ended.set();
        });
        if self.stop_wanted.is_set() {
            shrinking.engine.give_up();
        }
        Ok(shrinking)
    }
}

/// Makes the cache of a set that is not running smaller.
pub fn shrink_cache_of(path: &Path, bytes: u64) -> Result<String, Failure> {
    let shrunk = resize_alone(path, "ubcache resize --cache SIZE", async |set| {
        let shrink = Box::pin(set.begin_shrink(bytes)).await?;
        Box::pin(shrink.run()).await
    })?;
    let resized = shrunk.map_err(|error| {
        let (said, advice) = words(&error);
        let failure = Failure::refused(path, said);
        advice.into_iter().fold(failure, |failure, advice| failure.advice(advice))
    })?;
    Ok(smaller(path, resized))
}

/// Words about a cache that is smaller now.
fn smaller(path: &Path, resized: Resized) -> String {
    let (before, after) = (resized.before * SECTOR_BYTES, resized.after * SECTOR_BYTES);
    let shown = path.display();
    let cut = match std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        true => format!("truncate -s {after} {shown}"),
        false => format!("lvreduce -L {after}b {shown}, or another tool for {after} bytes"),
    };
    format!(
        "{shown}: {}, before {}; the device is not used beyond the first {after} bytes: {cut}",
        show_size(after),
        show_size(before)
    )
}

/// Words about an error, and what to do.
fn words(error: &EngineError) -> (String, Option<&'static str>) {
    let said = match error {
        EngineError::NotSmaller { before, after } => format!(
            "the cache has {}, and is to have {}, which is not less",
            show_size(*before),
            show_size(*after)
        ),
        EngineError::CacheTooSmall { found, least } => format!(
            "{} are too few for a cache with these buckets; expected {} or more",
            show_size(*found),
            show_size(*least)
        ),
        EngineError::DoesNotFit { needed, room } => format!(
            "found {} beyond the new end that can't be dropped, with what a cache keeps free, and \
             room for {} before it",
            show_size(*needed),
            show_size(*room)
        ),
        error => error.to_string(),
    };
    let advice = match error {
        EngineError::NotSmaller { .. } => {
            Some("a cache that is to grow gets the size of its device: ubcache resize --cache")
        }
        EngineError::DoesNotFit { .. } | EngineError::ShrinkEnded(ShrinkEnd::NoRoom { .. }) => {
            Some(
                "have dirty data written back (ubcache drain EXPORT --wait), remove or shorten \
                 flash-only volumes (ubcache flash), or choose a larger size",
            )
        }
        EngineError::ShrinkEnded(ShrinkEnd::InUse(_)) => Some("try again"),
        EngineError::Resizing => Some("start the set again first: ubcache upgrade"),
        _ => None,
    };
    (said, advice)
}

fn refusal(path: &Path, error: &EngineError) -> Refusal {
    let kind = match error {
        EngineError::NotSmaller { .. }
        | EngineError::CacheTooSmall { .. }
        | EngineError::DoesNotFit { .. }
        | EngineError::Resizing
        | EngineError::ShrinkEnded(_)
        | EngineError::Stopping => Kind::Conflict,
        _ => Kind::Failed,
    };
    let (said, advice) = words(error);
    let refusal = Refusal::new(kind, format_args!("{}: {said}", path.display()));
    advice.into_iter().fold(refusal, |refusal, advice| refusal.advice(advice))
}
