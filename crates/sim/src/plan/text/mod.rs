//! Plans as text, one thing a line. What [`Plan`](super::Plan)'s `Display` prints, its `FromStr`
//! reads.
//!
//! | module | holds |
//! |---|---|
//! | `print` | plans as text |
//! | `words`, `lines` | words and lines of a text |
//! | `parse` | a plan of all lines |

mod lines;
mod parse;
mod print;
mod words;

use std::str::FromStr;

use crate::disk::{Outage, Profile};
use crate::executor::Policy;

const HEAD: &str = "ubcache-plan 1";

const POLICIES: [(&str, Policy); 4] = [
    ("uniform", Policy::Uniform),
    ("fifo", Policy::Fifo),
    ("ranks", Policy::Ranks),
    ("queues", Policy::Queues),
];
const PROFILES: [(&str, Profile); 5] = [
    ("fast", Profile::Fast),
    ("slow", Profile::Slow),
    ("jitter", Profile::Jitter),
    ("stall", Profile::Stall),
    ("late-writes", Profile::LateWrites),
];

const OUTAGES: [(&str, Outage); 5] = [
    ("errors", Outage::Errors),
    ("read-only", Outage::ReadOnly),
    ("gone", Outage::Gone),
    ("full", Outage::Full),
    ("quota", Outage::Quota),
];

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, other)| other == value).map_or("?", |(name, _)| name)
}

impl FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Policy, String> {
        let policy = POLICIES.iter().find(|(name, _)| *name == text);
        policy.map(|(_, policy)| *policy).ok_or_else(|| format!("no policy is called \"{text}\""))
    }
}

/// A text that is not a plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the plan, \"{text}\": {why}")]
pub struct PlanError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// Fault of the line.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use crate::plan::Plan;
    use crate::plan::draw::{DrawOptions, draw};

    #[test]
    fn plans_print_and_parse() {
        for seed in 0..200 {
            let plan = draw(seed, DrawOptions::default());
            let text = plan.to_string();
            assert_eq!(text.parse::<Plan>().as_ref(), Ok(&plan), "{text}");
        }
    }

    #[test]
    fn parse_error_of_a_plan_names_its_line() {
        let mut text = draw(1, DrawOptions::default()).to_string();
        text.push_str("c0 v0 read 12\n");
        let error = text.parse::<Plan>().expect_err("the last line has no length");
        assert_eq!((error.line, error.text.as_str()), (text.lines().count(), "c0 v0 read 12"));
        assert!("".parse::<Plan>().is_err());
        let plan = draw(1, DrawOptions::default()).to_string();
        for line in [
            "at 1 +1us outage 0 gone 5us",
            "at 1 +1us outage 9 errors",
            "at 1 +1us outage 0 tired",
            "at 1 +1us disconnect v9",
            "hand 1 swap 0 pray",
            "hand 1 copy 9",
            "hand 1 cut 0 8",
            "flush-loss disk=9 late=0",
            "nbd connections=1",
            "hammer v0 0+99999999 every 5us",
            "hammer v9 0+8 every 5us",
            "hammer v0 0+8",
            "faults disk=1 zone=journal read=1 write=1 flush=1 latent=1 budget=1",
            "faults disk=1 zone=5 read=1 write=1 flush=1 latent=1 budget=1",
        ] {
            assert!(format!("{plan}{line}\n").parse::<Plan>().is_err(), "{line}");
        }
    }
}
