//! Backing devices that have no superblock on them: what a start believes after it has compared the
//! disk with what the last run left of it (A9).

use ubcache_env::{Env, Witness};
use ubcache_format::{BackingState, Superblock};

use super::Set;
use super::run_numbers::Choice;
use crate::errors::EngineError;
use crate::rules::Rule;

impl<E: Env> Set<E> {
    /// A9: the data of the cache that counts for a disk of which this is known; `None`: all of it.
    ///
    /// # Errors
    /// Somebody else wrote to the disk, and the cache has dirty data of it; it has another size. A
    /// choice of the operator decides then.
    pub(super) async fn choice_by_witness(
        &self,
        witness: &Witness,
        (slot, backing): (Option<usize>, &Superblock),
        given: Option<Choice>,
    ) -> Result<Option<Choice>, EngineError> {
        let is_dirty = backing.state() == BackingState::Dirty;
        let nothing_else = if is_dirty { Choice::BelieveCache } else { Choice::BelieveDisk };
        let choice = match witness {
            Witness::Unneeded | Witness::Same => return Ok(None),
            Witness::Resized { found, expected } => given.ok_or(EngineError::Resized {
                uuid: backing.uuid,
                found: *found,
                expected: *expected,
            })?,
            // It was the driver, with this cache. No clean data is left, or it is to be kept.
            Witness::Unknown | Witness::Different { .. } if self.taken_over.get().is_some() => {
                return Ok(None);
            }
            Witness::Unknown if !self.context.keeps(Rule::A9UnknownDropsClean) => {
                return Ok(None);
            }
            Witness::Unknown => {
                self.context.env.mark("disk_not_known");
                // It keeps its slot: there are not so many as there may be crashes.
                Choice::BelieveCache
            }
            Witness::Different { .. } if !self.context.keeps(Rule::A9Compared) => return Ok(None),
            Witness::Different { found, expected } => {
                self.context.env.mark("disk_written_elsewhere");
                match given {
                    None if is_dirty => {
                        return Err(EngineError::WrittenElsewhere {
                            uuid: backing.uuid,
                            found: found.clone(),
                            expected: expected.clone(),
                        });
                    }
                    None => nothing_else,
                    Some(choice) => choice,
                }
            }
        };
        if choice == Choice::DropClean {
            self.nothing_dirty_to_drop(slot, backing.state()).await?;
        }
        Ok(Some(choice))
    }
}
