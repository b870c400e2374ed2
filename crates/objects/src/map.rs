//! The current name of every object, the pages that changed since the last root, and the names that
//! no later root will have.

use std::collections::BTreeMap;

use crate::manifest::{PAGE_ENTRIES, Page, Shape};
use crate::names::Version;

/// Names of the objects of a page.
#[derive(Clone, Default)]
struct Names {
    objects: Vec<Option<Version>>,
    /// Moment of the last change, and the last moment that a root has.
    changed: u64,
    rooted: u64,
}

/// A page that has to be written for the next root.
pub struct ChangedPage {
    /// Its number.
    pub page: u64,
    /// Its content; none if all its objects are holes.
    pub content: Option<Page>,
    moment: u64,
}

/// Names for the next root. A change before its moment is in it.
pub struct Moment {
    /// The pages that differ from the last root.
    pub pages: Vec<ChangedPage>,
    moment: u64,
}

/// See the module.
pub struct ObjectMap {
    pages: Vec<Names>,
    moment: u64,
    /// Names that were replaced, and when: the last root may have them.
    replaced: BTreeMap<(u64, Version), u64>,
}

impl ObjectMap {
    /// A map of holes.
    pub fn new(shape: Shape) -> ObjectMap {
        let pages = vec![Names::default(); shape.pages() as usize];
        ObjectMap { pages, moment: 0, replaced: BTreeMap::new() }
    }

    /// The volume has become longer, by holes.
    pub fn grow(&mut self, shape: Shape) {
        self.pages.resize(shape.pages() as usize, Names::default());
    }

    /// Takes a page that a root names.
    pub fn load(&mut self, page: Page) {
        self.pages[page.page as usize].objects = page.objects;
    }

    /// The name of the object's content; none for a hole.
    pub fn get(&self, index: u64) -> Option<Version> {
        let names = &self.pages[(index / PAGE_ENTRIES) as usize].objects;
        names.get((index % PAGE_ENTRIES) as usize).copied().flatten()
    }

    /// Number of objects that are no holes.
    pub fn objects(&self) -> usize {
        self.pages.iter().map(|names| names.objects.iter().flatten().count()).sum()
    }

    /// The object has another content.
    pub fn set(&mut self, index: u64, version: Option<Version>) {
        let old = self.get(index);
        if old == version {
            return;
        }
        self.moment += 1;
        let names = &mut self.pages[(index / PAGE_ENTRIES) as usize];
        if names.objects.is_empty() {
            names.objects = vec![None; PAGE_ENTRIES as usize];
        }
        names.objects[(index % PAGE_ENTRIES) as usize] = version;
        names.changed = self.moment;
        if let Some(old) = old {
            self.replaced.insert((index, old), self.moment);
        }
    }

    /// Returns true if this name is of the present content, or the last root may have it.
    pub fn is_needed(&self, index: u64, version: Version) -> bool {
        let within = index / PAGE_ENTRIES < self.pages.len() as u64;
        within && self.get(index) == Some(version) || self.replaced.contains_key(&(index, version))
    }

    /// The present state, for a root.
    pub fn now(&self) -> Moment {
        let changed =
            self.pages.iter().enumerate().filter(|(_, names)| names.changed != names.rooted);
        let pages = changed.map(|(page, names)| {
            let page = page as u64;
            let content = names
                .objects
                .iter()
                .any(Option::is_some)
                .then(|| Page { page, objects: names.objects.clone() });
            ChangedPage { page, content, moment: names.changed }
        });
        Moment { pages: pages.collect(), moment: self.moment }
    }

    /// A root names that state. Returns the objects that it does not name any more.
    pub fn rooted(&mut self, state: &Moment) -> Vec<(u64, Version)> {
        for changed in &state.pages {
            let names = &mut self.pages[changed.page as usize];
            names.rooted = changed.moment;
            if changed.content.is_none() && names.changed == changed.moment {
                names.objects = Vec::new();
            }
        }
        let gone = self.replaced.extract_if(.., |_, moment| *moment <= state.moment);
        gone.map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_needed_until_a_root_without_it() {
        let mut map = ObjectMap::new(Shape { size_bytes: 8 << 30, object_bytes: 4 << 20 });
        let (first, second, third) = (Version(1, 1), Version(1, 2), Version(1, 3));
        map.set(1500, Some(first));
        let state = map.now();
        assert_eq!(state.pages.len(), 1);
        assert_eq!(map.rooted(&state), []);
        assert!(map.now().pages.is_empty());
        map.set(1500, Some(second));
        let state = map.now();
        map.set(1500, Some(third));
        assert!(map.is_needed(1500, first) && map.is_needed(1500, second));
        assert_eq!(map.rooted(&state), [(1500, first)]);
        assert!(!map.is_needed(1500, first) && map.is_needed(1500, second));
        let state = map.now();
        assert_eq!(state.pages.len(), 1, "it changed after the last state");
        assert_eq!(map.rooted(&state), [(1500, second)]);
        map.set(1500, None);
        let state = map.now();
        assert!(state.pages[0].content.is_none(), "a page of holes is none");
        map.rooted(&state);
        assert_eq!(map.get(1500), None);
    }
}
