//! A panic of the system under test is a violation like any other, with its place and its words.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

static HOOK: Once = Once::new();

/// Message of a panic.
pub(super) struct Panic {
    /// The file and line, without what differs from machine to machine.
    pub(super) place: String,
    /// The place and the message.
    pub(super) words: String,
}

/// Runs `work`; a panic in it is not printed but returned.
pub(super) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                WORDS.with_borrow_mut(|words| *words = info.to_string());
            } else {
                usual(info);
            }
        }));
    });
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    result.map_err(|_| {
        let words = WORDS.take();
        let line = words.lines().next().unwrap_or_default();
        let place = line.split("crates/").last().unwrap_or(line).trim_end_matches(':');
        Panic { place: place.to_owned(), words }
    })
}
