//! A value that is written into a file: everything else of it stays as it is, comments and order
//! included.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::fault::Fault;
use super::set_file::SetFile;
use crate::failure::Failure;

/// Writes attributes into the text of a file: those of a volume, or without one those of the set
/// and of all volumes. Gives the new text.
pub fn with_attributes(
    file: &Path,
    text: &str,
    volume: Option<&str>,
    settings: &[(String, String)],
) -> Result<String, Failure> {
    let refused = |why: &dyn std::fmt::Display| Failure::refused(file, why);
    SetFile::parse(file, text).map_err(|faults| first(file, &faults))?;
    let mut document: DocumentMut = text.parse().map_err(|error| refused(&error))?;
    for (name, value) in settings {
        let mut found = false;
        for table in volumes(&mut document) {
            let own = table.get("name").and_then(Item::as_str).map(str::to_owned);
            match volume {
                Some(wanted) if own.as_deref() == Some(wanted) => {
                    put(table, name, value, true);
                    found = true;
                }
                Some(_) => {}
                // Its own value would win over that of all.
                None => put(table, name, value, false),
            }
        }
        match volume {
            None => put(document.as_table_mut(), name, value, true),
            Some(_) if found => {}
            Some(wanted) => {
                return Err(refused(&format_args!("has no volume \"{wanted}\""))
                    .advice("`ubcache config diff` compares the file and the daemon"));
            }
        }
    }
    let new = document.to_string();
    // Never a file that the next start would refuse.
    SetFile::parse(file, &new).map_err(|faults| first(file, &faults))?;
    Ok(new)
}

fn first(file: &Path, faults: &[Fault]) -> Failure {
    let fault = faults.first().map(ToString::to_string).unwrap_or_default();
    Failure::refused(file, format_args!("can't be changed: {fault}"))
        .advice(format_args!("ubcache config check {}", file.display()))
}

fn volumes(document: &mut DocumentMut) -> Vec<&mut dyn TableLike> {
    match document.get_mut("volume") {
        Some(Item::ArrayOfTables(tables)) => {
            tables.iter_mut().map(|table| table as &mut dyn TableLike).collect()
        }
        Some(Item::Value(Value::Array(tables))) => tables
            .iter_mut()
            .filter_map(|value| value.as_inline_table_mut())
            .map(|table| table as &mut dyn TableLike)
            .collect(),
        _ => Vec::new(),
    }
}

/// Puts an attribute into a table, where it is already if it is; `make`: also where it is not.
fn put(table: &mut dyn TableLike, name: &str, value: &str, make: bool) {
    // The mode has a key of its own.
    if name == "cache_mode" && (table.contains_key("mode") || make && !has_attribute(table, name)) {
        return replace(table, "mode", value);
    }
    if has_attribute(table, name) || make {
        if !table.contains_key("attributes") {
            table.insert("attributes", Item::Table(Table::new()));
        }
        if let Some(attributes) = table.get_mut("attributes").and_then(Item::as_table_like_mut) {
            replace(attributes, name, value);
        }
    }
}

fn has_attribute(table: &mut dyn TableLike, name: &str) -> bool {
    let attributes = table.get_mut("attributes").and_then(|item| item.as_table_like_mut());
    attributes.is_some_and(|attributes| attributes.contains_key(name))
}

/// Replaces a value, with the spaces and the comment around it.
fn replace(table: &mut dyn TableLike, name: &str, text: &str) {
    let mut value = match text.parse::<i64>() {
        Ok(number) => Value::from(number),
        Err(_) => Value::from(text),
    };
    if let Some(old) = table.get(name).and_then(Item::as_value) {
        *value.decor_mut() = old.decor().clone();
    }
    match table.get_mut(name) {
        Some(item) => *item = Item::Value(value),
        None => drop(table.insert(name, Item::Value(value))),
    }
}

/// Replaces a file as a whole, with its owner and permissions.
pub fn replace_file(file: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::could_not_run(file, format_args!("can't be written: {error}"))
            .advice("the value is in effect until the next start; run the command as root")
    };
    // A link stays one.
    let real = std::fs::canonicalize(file).map_err(failed)?;
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = real.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = write_like(&real, &new, text).and_then(|()| std::fs::rename(&new, &real));
    if let Err(error) = written {
        // It may not be there.
        let _ = std::fs::remove_file(&new);
        return Err(failed(error));
    }
    let directory = real.parent().map(std::fs::File::open);
    directory.transpose().and_then(|it| it.map_or(Ok(()), |it| it.sync_all())).map_err(failed)
}

fn write_like(old: &Path, new: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, fchown};
    let like = std::fs::metadata(old)?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(new)?;
    file.write_all(text.as_bytes())?;
    fchown(&file, Some(like.uid()), Some(like.gid()))?;
    file.set_permissions(like.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# my set
cache = "/c"   # fast
mode = "writeback" # bold

[[volume]] # one
name = "a"
backing = "/a"

[volume.attributes]
sequential_cutoff = "4M" # small

# two
[[volume]]
backing = "/b"
name = "b"
"#;

    fn saved(volume: Option<&str>, name: &str, value: &str) -> String {
        let settings = [(name.to_owned(), value.to_owned())];
        with_attributes(Path::new("s.toml"), FILE, volume, &settings).expect("a good file")
    }

    #[test]
    fn value_changes_and_all_else_stays() {
        assert_eq!(
            saved(Some("a"), "sequential_cutoff", "8M"),
            FILE.replace("\"4M\" # small", "\"8M\" # small")
        );
        assert_eq!(
            saved(None, "cache_mode", "none"),
            FILE.replace("\"writeback\" # bold", "\"none\" # bold")
        );
        assert_eq!(
            saved(Some("b"), "writeback_percent", "20"),
            format!("{FILE}\n[volume.attributes]\nwriteback_percent = 20\n")
        );
        let all = saved(None, "sequential_cutoff", "1M");
        assert!(all.contains("\"1M\" # small"), "the volume's own value as well: {all}");
        assert!(all.contains("[attributes]\nsequential_cutoff = \"1M\""), "{all}");
        assert!(all.starts_with("# my set\n"), "{all}");
    }

    #[test]
    fn value_that_a_start_would_refuse_is_not_saved() {
        let save = |volume, name: &str, value: &str| {
            let settings = [(name.to_owned(), value.to_owned())];
            with_attributes(Path::new("s.toml"), FILE, volume, &settings)
        };
        for (volume, name, value) in [
            (Some("c"), "writeback_percent", "20"),
            (None, "writeback_percent", "99"),
            (Some("a"), "no_such", "1"),
        ] {
            assert!(save(volume, name, value).is_err(), "{name}");
        }
    }
}
