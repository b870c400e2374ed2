//! The lines that a set is restored from: those of the small sets with patches, and lines of any
//! bytes.
//!
//! ```text
//!  byte 0        which set          then 8 bytes for each patch:
//!                                   0–1 which line, 2 which field, 3 what, 4–5 a number, 6–7 another line
//!  byte 0: 255   all other bytes are the dump
//! ```
//!
//! A refused dump is refused before anything is written. A restored set has no damage, and its
//! content is that of the dump.

use std::cell::OnceCell;

use serde_json::{Value, json};
use ubcache_offline::{
    CheckOptions, OfflineError, Standing, TargetState, check, dump_for_restore, look_at_target,
    read_dump, restore,
};

use crate::device::{Image, MemDevice, run};
use crate::sets::{Base, small};

/// Nothing larger is made: the small sets have 33 thousand sectors at most.
const SECTORS_MAX: u64 = 1 << 17;
/// Numbers at the rims of fields.
const RIMS: [u64; 12] =
    [0, 1, 7, 8, 255, 256, 65535, 1 << 20, (1 << 43) - 1, (1 << 63) - 1, 1 << 63, u64::MAX];

thread_local! {
    static DUMPS: OnceCell<Vec<(Base, Vec<String>)>> = const { OnceCell::new() };
}

/// See the module.
///
/// # Panics
/// Panics if reading or restoring does, or if the restored set differs from the dump.
pub fn dump_lines(data: &[u8]) {
    DUMPS.with(|dumps| {
        let dumps = dumps.get_or_init(|| small().into_iter().map(dumped).collect());
        match data.split_first() {
            Some((255, bytes)) => {
                let text = String::from_utf8_lossy(bytes);
                one(&dumps[0].0, &text.lines().map(str::to_owned).collect::<Vec<_>>());
            }
            Some((set, patches)) => {
                let (base, lines) = &dumps[usize::from(*set) % dumps.len()];
                let mut lines = lines.clone();
                patches.chunks_exact(8).for_each(|patch| apply(&mut lines, patch));
                let whole = one(base, &lines);
                assert!(whole || !patches.is_empty(), "a dump as it was written is refused");
            }
            None => {}
        }
    });
}

fn lines_of(cache: &MemDevice) -> Result<Vec<String>, OfflineError> {
    let mut lines = Vec::new();
    let sink = |line: &str| {
        lines.push(line.to_owned());
        Ok(())
    };
    run(dump_for_restore(cache, sink, &()))?;
    Ok(lines)
}

fn dumped(base: Base) -> (Base, Vec<String>) {
    let lines = lines_of(&MemDevice::new(base.cache.clone(), base.block));
    (base, lines.unwrap_or_else(|error| panic!("a set without damage: {error}")))
}

fn apply(lines: &mut Vec<String>, patch: &[u8]) {
    let &[l0, l1, field, what, n0, n1, o0, o1] = patch else { return };
    let count = lines.len().max(1);
    let at = usize::from(u16::from_le_bytes([l0, l1])) % count;
    let other = usize::from(u16::from_le_bytes([o0, o1])) % count;
    let number = u16::from_le_bytes([n0, n1]);
    let Some(line) = lines.get_mut(at) else { return };
    match what % 16 {
        0 => drop(lines.remove(at)),
        1 => lines.swap(at, other),
        2 => lines.insert(other, lines[at].clone()),
        3 => line.truncate(usize::from(number)),
        4 => {
            let byte = usize::from(number) % line.len().max(1);
            if line.is_char_boundary(byte) && line.is_char_boundary(byte + 1) && byte < line.len() {
                line.replace_range(byte..=byte, &String::from(char::from(field % 128)));
            }
        }
        what => {
            let from = lines[other].clone();
            let Ok(mut object) = serde_json::from_str::<Value>(&lines[at]) else { return };
            change(&mut object, usize::from(field), what, number, &from);
            lines[at] = object.to_string();
        }
    }
}

fn change(object: &mut Value, field: usize, what: u8, number: u16, from: &str) {
    let Some(map) = object.as_object_mut() else { return };
    let Some(name) = map.keys().nth(field % map.len().max(1)).cloned() else { return };
    if what == 5 {
        map.remove(&name);
        return;
    }
    let Some(mut value) = map.get_mut(&name) else { return };
    if what > 8
        && let Value::Array(values) = value
    {
        let count = values.len().max(1);
        let Some(one) = values.get_mut(usize::from(number) % count) else { return };
        value = one;
    }
    *value = match what {
        6 => Value::Null,
        7 => json!(number.is_multiple_of(2)),
        8 => json!(number.to_string()),
        9 => json!(RIMS[usize::from(number) % RIMS.len()]),
        10 => json!(-i64::from(number)),
        11 => json!(f64::from(number) + 0.5),
        12 => json!(value.as_u64().unwrap_or(0).wrapping_add(u64::from(number))),
        13 => json!(value.as_u64().unwrap_or(0).wrapping_sub(u64::from(number))),
        14 => serde_json::from_str::<Value>(from).map_or(Value::Null, |other| other[&name].clone()),
        _ => json!(number),
    };
}

/// True if the dump was restored.
fn one(base: &Base, lines: &[String]) -> bool {
    let Ok(dumped) = read_dump(lines) else { return false };
    drop(run(look_at_target(&dumped, &MemDevice::new(base.backing.clone(), base.block), &())));
    if dumped.device_sectors > SECTORS_MAX {
        return false;
    }
    let new = MemDevice::new(Image::zeroed(dumped.device_sectors as usize * 512), 512);
    let onto_new = onto(base, lines, &new, &TargetState::new_file());

    let there = MemDevice::new(base.cache.clone(), base.block);
    let state = run(look_at_target(&dumped, &there, &()));
    if let Ok(state) = state
        && matches!(state.standing, Standing::SameSet { .. } | Standing::Unknown)
        && dumped.device_sectors * 512 <= base.cache.len() as u64
    {
        onto(base, lines, &there, &state);
    }
    onto_new
}

fn onto(base: &Base, lines: &[String], target: &MemDevice, state: &TargetState) -> bool {
    let dumped = read_dump(lines).unwrap_or_else(|error| panic!("it was read before: {error}"));
    match run(restore(&dumped, lines, target, state, &())) {
        Ok(_) => {}
        // Buckets for the metadata were counted while it was written.
        Err(OfflineError::NoRoom(_)) => return false,
        Err(error @ OfflineError::Dump { .. }) => {
            assert!(target.log().is_empty(), "{error}, and something was written");
            return false;
        }
        Err(error) => panic!("what was read can't be restored: {error}"),
    }
    let report = run(check(target, &[], None, CheckOptions::default())).report;
    assert!(report.is_clean(), "{}: {:?}", base.name, report.errors());
    let again = lines_of(target)
        .unwrap_or_else(|error| panic!("what was restored can't be dumped: {error}"));
    let extents = |lines: &[String]| -> Vec<Value> {
        let values =
            lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap_or_default());
        values.filter(|value| value["type"] == "extent").map(|value| plain(&value)).collect()
    };
    assert_eq!(extents(&again), extents(lines), "{}", base.name);
    true
}

/// An extent in the form in which it is written, without additions to the line.
fn plain(line: &Value) -> Value {
    let names = ["volume", "sector", "sectors", "dirty", "at", "generation", "csum"];
    let kept = names.iter().filter(|name| **name != "csum" || line["csum"] != json!(0));
    let kept = kept.filter(|name| **name != "generation" || !line["at"].is_null());
    Value::Object(
        kept.filter_map(|name| Some(((*name).to_owned(), line.get(*name)?.clone()))).collect(),
    )
}
