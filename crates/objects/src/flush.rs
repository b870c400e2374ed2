//! Flush: objects, pages, root.

use std::rc::Rc;

use ubcache_env::local::join_all;
use ubcache_env::{Env, IoResult, Priority};

use crate::conditional::{Outcome, put_if};
use crate::disk::{Committed, Inner};
use crate::manifest::Root;
use crate::map::Moment;
use crate::names::{ROOT, Version, data_key, page_key};
use crate::store::{Condition, Store};

/// Deletions under way for one flush.
const DELETIONS: usize = 8;

impl<E: Env, S: Store> Inner<E, S> {
    /// Makes every write that completed before this call durable.
    pub(crate) async fn flush(self: &Rc<Self>) -> IoResult {
        self.check()?;
        let asked = self.flush_began.get();
        let _turn = self.flushing.lock().await;
        // A flush that began after the call has done it.
        if self.flush_done.get() > asked {
            return self.check();
        }
        let number = self.flush_began.get() + 1;
        self.flush_began.set(number);
        self.flush_now().await?;
        self.flush_done.set(number);
        Ok(())
    }

    async fn flush_now(self: &Rc<Self>) -> IoResult {
        let dirty = self.buffers.borrow().all();
        let puts = dirty.iter().map(|(index, slot)| self.put_object(*index, slot));
        join_all(puts).await.into_iter().collect::<IoResult>()?;
        self.check()?;
        let state = self.map.borrow().now();
        if state.pages.is_empty() {
            return Ok(());
        }
        let names = self.put_pages(&state).await?;
        if self.options.rules.flush_without_root {
            return Ok(());
        }
        let mut root = self.committed.borrow().root.clone();
        for (page, name) in names {
            root.pages[page as usize] = name;
        }
        let old = self.put_root(root).await?;
        let gone = self.map.borrow_mut().rooted(&state);
        let keys = gone.into_iter().map(|(index, version)| data_key(index, version));
        self.delete(keys.chain(old).collect());
        Ok(())
    }

    async fn put_pages(&self, state: &Moment) -> IoResult<Vec<(u64, Option<Version>)>> {
        let puts = state.pages.iter().map(async |changed| {
            let Some(content) = &changed.content else { return Ok((changed.page, None)) };
            let version = self.version();
            let key = page_key(changed.page, version);
            let put = self.store.put(&key, content.to_bytes(), Condition::None).await;
            put.map_err(|error| self.failure(error))?;
            Ok((changed.page, Some(version)))
        });
        join_all(puts).await.into_iter().collect()
    }

    /// Replaces the root of this writer. Returns the keys of pages that it does not name any more.
    pub(crate) async fn put_root(&self, root: Root) -> IoResult<Vec<String>> {
        let turn = self.next_turn.get();
        self.next_turn.set(turn + 1);
        let root = Root { turn, ..root };
        loop {
            let condition = match self.options.rules.unconditional_root {
                false => Condition::Matches(self.committed.borrow().etag.clone()),
                true => Condition::None,
            };
            let outcome = put_if(&self.store, ROOT, root.to_bytes(), condition).await;
            match outcome.map_err(|error| self.failure(error))? {
                Outcome::Done(etag) => {
                    let old = self.committed.replace(Committed { root: root.clone(), etag }).root;
                    let pages = old.pages.iter().zip(&root.pages).zip(0_u64..);
                    let gone = pages.filter(|((old, new), _)| old != new);
                    return Ok(gone
                        .filter_map(|((old, _), page)| Some(page_key(page, (*old)?)))
                        .collect());
                }
                Outcome::Beaten(None) => return Err(self.lose("the root is gone".to_owned())),
                Outcome::Beaten(Some(object)) => match Root::parse(&object.bytes) {
                    // A root of this writer that was given up has taken effect late.
                    Ok(found) if found.writer == root.writer => {
                        let etag = object.etag;
                        self.committed.replace(Committed { root: found, etag });
                    }
                    Ok(Root { writer, epoch, .. }) => {
                        let reason = format!("writer {writer} of epoch {epoch} has the volume");
                        return Err(self.lose(reason));
                    }
                    Err(error) => return Err(self.lose(format!("object \"{ROOT}\": {error}"))),
                },
            }
        }
    }

    /// Deletes objects in the background. What is left is found at the next attachment.
    pub(crate) fn delete(self: &Rc<Self>, keys: Vec<String>) {
        if keys.is_empty() {
            return;
        }
        let inner = self.clone();
        self.env.spawn(Priority::Background, async move {
            for some in keys.chunks(DELETIONS) {
                let deletions = some.iter().map(|key| inner.store.delete(key));
                join_all(deletions).await;
                if inner.check().is_err() {
                    return;
                }
            }
        });
    }
}
