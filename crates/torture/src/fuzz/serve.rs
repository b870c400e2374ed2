//! Whole small sets with patches, under the engine: it starts the set or reports an error. Input as
//! for [`super::check`]; byte 1 chooses the options of the start.

use super::check::with_patched;
use crate::serve::{How, serve as serve_set};

/// See the module.
///
/// # Panics
/// Panics if the engine does.
pub fn serve(data: &[u8]) {
    with_patched(data, |base, image, how| {
        let bit = |n: u8| how >> n & 1 == 1;
        drop(serve_set(base, &image, How { lazy: bit(0), collect: bit(1), keep_clean: bit(2) }));
    });
}
