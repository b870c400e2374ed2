//! Making room in the ring in as few passes as it takes (N5).
//!
//! A pass replaces leaves that lack records, and the nodes above them. It takes an entry for the
//! root, and one for a prio chain where the next pass needs the buckets that it gave back. Where
//! the buckets are enough for all leaves there is one pass, and its entry lets everything older go;
//! else the entries of all but the last may let nothing go. Before the count no pass gets back what
//! another gave up, so there is one pass then, or none.

use std::collections::BTreeSet;
use std::rc::Rc;

use ubcache_env::Env;

use super::Index;
use super::leaf::Leaf;
use crate::alloc::buckets::Purpose;
use crate::errors::EngineError;
use crate::rules::Rule;

impl<E: Env> Index<E> {
    /// Number of buckets that it takes to replace these and all nodes above them, if none is split.
    fn buckets_packed(&self, groups: &[Vec<Rc<Leaf>>]) -> usize {
        let keys = |leaf: &Rc<Leaf>| leaf.state.borrow().body.as_ref().map_or(0, |body| body.len());
        let nodes = |group: &Vec<Rc<Leaf>>| self.nodes_at_least(group.iter().map(keys).sum());
        let leaves: usize = groups.iter().map(nodes).sum();
        let tree = self.tree.borrow();
        let parents = |level| {
            let ends = groups.iter().flatten().map(|leaf| tree.parent(level, leaf.end).1);
            ends.collect::<BTreeSet<_>>().len()
        };
        leaves + (1..=tree.interior.len()).map(parents).sum::<usize>() + 1
    }

    /// Number of groups, from the front, for which there are buckets now; one at least, which may
    /// wait for some.
    fn groups_that_fit(&self, groups: &[Vec<Rc<Leaf>>]) -> usize {
        let buckets = self.allocator.buckets();
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::N5PassesHaveRoom) && !buckets.is_counted() {
            return 1;
        }
        let (mut fits, mut most) = (1, groups.len());
        while fits < most {
            let count = fits + (most - fits).div_ceil(2);
            match buckets.can_take(Purpose::Metadata, self.buckets_packed(&groups[..count])) {
                true => fits = count,
                false => most = count - 1,
            }
        }
        fits
    }

    /// N5: leaves are not replaced in several passes before the count. What a pass gives back is
    /// not used again before it (G4), and by then there may be buckets for all of them at once.
    pub(super) fn passes_wait_for_count(&self, groups: &[Vec<Rc<Leaf>>]) -> bool {
        let buckets = self.allocator.buckets();
        !buckets.is_counted()
            && self.context.keeps(Rule::N5PassesHaveRoom)
            && !buckets.can_take(Purpose::Metadata, self.buckets_packed(groups))
    }

    /// Waits until every bucket is known. Counting takes neither buckets nor entries.
    pub(super) async fn wait_for_count(&self, groups: &[Vec<Rc<Leaf>>]) -> Result<(), EngineError> {
        self.context.env.mark("passes_wait_for_count");
        // A stop goes on counting for it.
        let _claim = self.allocator.claim_for_nodes(self.buckets_packed(groups));
        self.allocator.until_counted().await
    }

    /// Leaves out what there are no buckets for now, but not the first group. To run out of buckets
    /// in the middle is to give up those that were written, and a next try of as many would end in
    /// the same way: each costs a prio chain, and with it the room in the ring that was to be made.
    pub(super) async fn gather_and_cut(
        &self,
        groups: &mut Vec<Vec<Rc<Leaf>>>,
    ) -> Result<(), EngineError> {
        // Gathered first, so that one prio chain is enough.
        let needed = self.buckets_packed(groups);
        let enough = self.allocator.buckets().can_take(Purpose::Metadata, needed);
        if !enough && self.journal.is_tight() {
            self.gather_buckets(needed).await?;
        }
        let fits = self.groups_that_fit(groups);
        groups.truncate(fits);
        Ok(())
    }
}
