//! Numbers of the table by which a ring knows memory of others.
//!
//! A driver puts the memory of a request under the number that the request's slot has, and takes it
//! away with the answer. A number under which the driver still has something can be given to
//! another slot: the driver says so, and that slot's data is copied.

use std::ops::Range;

/// Numbers of a table: the most that the kernel takes.
pub(crate) const PLACES: u16 = 1 << 14;

/// Numbers in use.
#[derive(Default)]
pub(crate) struct Places {
    /// The kernel has the table, or none is to be had.
    table: Option<bool>,
    /// In order.
    taken: Vec<Range<u16>>,
}

impl Places {
    /// Takes so many numbers in a row. `register` makes the table, before the first.
    pub(crate) fn take(
        &mut self,
        count: u16,
        register: impl FnOnce() -> bool,
    ) -> Option<Range<u16>> {
        if !*self.table.get_or_insert_with(register) {
            return None;
        }
        let mut start = 0;
        let mut index = 0;
        while let Some(taken) = self.taken.get(index).filter(|taken| taken.start - start < count) {
            start = taken.end;
            index += 1;
        }
        let end = start.checked_add(count).filter(|end| *end <= PLACES)?;
        self.taken.insert(index, start..end);
        Some(start..end)
    }

    /// Takes numbers back.
    pub(crate) fn give_back(&mut self, numbers: &Range<u16>) {
        self.taken.retain(|taken| taken != numbers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_once_until_they_come_back() {
        let mut places = Places::default();
        let mut take = |count| places.take(count, || true);
        assert_eq!(take(128), Some(0..128));
        assert_eq!(take(4096), Some(128..4224));
        assert_eq!(take(128), Some(4224..4352));
        assert_eq!(take(PLACES), None);
        places.give_back(&(128..4224));
        let mut take = |count| places.take(count, || unreachable!("there is a table"));
        assert_eq!(take(4097), Some(4352..8449));
        assert_eq!(take(4000), Some(128..4128));
        assert_eq!(take(96), Some(4128..4224));
        assert_eq!(take(PLACES - 8449), Some(8449..PLACES));
        assert_eq!(take(1), None);
    }

    #[test]
    fn without_a_table_there_are_none_and_nobody_asks_again() {
        let mut places = Places::default();
        assert_eq!(places.take(1, || false), None);
        assert_eq!(places.take(1, || true), None);
    }
}
