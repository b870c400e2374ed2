//! Tables of modules: the map at the head of a folder names its files, and all of them.

use std::collections::BTreeSet;

use super::{Finding, Source};

/// Heads of tables whose first column has modules.
const HEADS: [&str; 2] = ["| module |", "| file |"];

pub fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().filter(|source| source.is_code()).flat_map(findings_of).collect()
}

fn findings_of(source: &Source) -> Vec<Finding> {
    let Some((first, named)) = table_of(&source.text) else { return Vec::new() };
    let declared = declared_in(&source.text);
    let names: BTreeSet<&str> = named.iter().map(|(_, name)| *name).collect();
    let dead = named.iter().filter(|(_, name)| !declared.contains(name));
    let dead = dead.map(|(line, name)| source.finding(*line, format!("there is no module {name}")));
    let missing = declared.iter().filter(|name| !names.contains(*name) && **name != "tests");
    let missing = missing
        .map(|name| source.finding(first, format!("the table of modules does not name {name}")));
    dead.chain(missing).collect()
}

/// The line of the head, and the names in the first column with their lines.
fn table_of(text: &str) -> Option<(usize, Vec<(usize, &str)>)> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let is_head = |line: &str| {
        line.strip_prefix("//! ").is_some_and(|line| HEADS.iter().any(|it| line.starts_with(it)))
    };
    let (head, _) = lines.find(|(_, line)| is_head(line))?;
    let rows = lines.map_while(|(at, line)| Some((at, line.strip_prefix("//! |")?)));
    let names = rows.flat_map(|(at, row)| {
        let cell = row.split('|').next().unwrap_or_default();
        cell.split('`').skip(1).step_by(2).map(move |name| (at, module_of(name)))
    });
    Some((head, names.collect()))
}

/// The module of this folder that a name begins with.
fn module_of(name: &str) -> &str {
    let name = name.trim_start_matches("mod@");
    name.split("::").next().unwrap_or(name)
}

fn declared_in(text: &str) -> BTreeSet<&str> {
    let name = |line: &'_ str| -> Option<usize> { line.find("mod ").map(|at| at + 4) };
    text.lines()
        .filter(|line| line.ends_with(';') && (line.starts_with("mod ") || line.starts_with("pub")))
        .filter_map(|line| Some(line[name(line)?..].trim_end_matches(';')))
        .filter(|name| {
            name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_and_missing_modules_are_found() {
        let text = "//! | module | holds |\n//! |---|---|\n//! | [`a`], `b` | x |\n\n\
                    mod a;\npub(crate) mod c;\npub use self::a::mod_like;\n";
        let source = Source { path: "x/mod.rs".into(), text: text.into() };
        let found: Vec<String> = findings_of(&source).iter().map(ToString::to_string).collect();
        let (dead, missing) = ("there is no module b", "the table of modules does not name c");
        assert_eq!(found, [format!("x/mod.rs:3: {dead}"), format!("x/mod.rs:1: {missing}")]);
    }
}
