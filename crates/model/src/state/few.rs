//! A list of fixed size, so that states can be compared and copied.

/// A short list.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Few<T, const N: usize> {
    len: u8,
    items: [T; N],
}

impl<T: Copy + Default, const N: usize> Default for Few<T, N> {
    fn default() -> Few<T, N> {
        Few { len: 0, items: [T::default(); N] }
    }
}

impl<T: Copy + Default, const N: usize> Few<T, N> {
    /// Returns true if nothing more fits.
    pub fn is_full(&self) -> bool {
        usize::from(self.len) == N
    }

    /// Adds an item; there must be room.
    pub fn push(&mut self, item: T) {
        self.items[usize::from(self.len)] = item;
        self.len += 1;
    }

    /// Removes the first items. Slots after the end are always the default, so that equal lists are
    /// equal.
    pub fn drop_first(&mut self, count: usize) {
        let len = usize::from(self.len);
        self.items.copy_within(count..len, 0);
        self.items[len - count..len].fill(T::default());
        self.len -= count as u8;
    }

    /// Keeps the first items only.
    pub fn truncate(&mut self, count: usize) {
        let len = usize::from(self.len);
        self.items[count..len].fill(T::default());
        self.len = count as u8;
    }
}

impl<T, const N: usize> std::ops::Deref for Few<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.items[..usize::from(self.len)]
    }
}

impl<T, const N: usize> std::ops::DerefMut for Few<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[..usize::from(self.len)]
    }
}
