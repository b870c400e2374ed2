//! Links and pointers of documents lead somewhere.
//!
//! - a link: to a file of the repository, or to a heading
//! - a code span that names a file, as `crates/engine/src/gc/pass.rs` does, or the end of a path:
//!   to such a file
//! - a code span `FILE.rs:NAME`: to a function, type or constant of that name in that file; line
//!   numbers rot

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{Finding, Source};

pub fn check(sources: &[Source], paths: &[String]) -> Vec<Finding> {
    let documents: Vec<(&Source, Document<'_>)> = sources
        .iter()
        .filter(|source| source.is_document())
        .map(|source| (source, Document::parse(&source.text)))
        .collect();
    let tree = Tree {
        paths,
        headings: documents
            .iter()
            .map(|(source, parsed)| (source.path.as_str(), &parsed.headings))
            .collect(),
        sources: sources
            .iter()
            .map(|source| (source.path.as_str(), source.text.as_str()))
            .collect(),
    };
    let mut findings = Vec::new();
    for (source, document) in &documents {
        let mut found = |at: usize, message: String| {
            let line = source.text[..at].matches('\n').count() + 1;
            findings.push(source.finding(line, message));
        };
        for (at, link) in &document.links {
            if !tree.has_target(&source.path, link) {
                found(*at, format!("link to {link}, which is not there"));
            }
        }
        for (at, span) in &document.spans {
            if let Some(complaint) = tree.complaint_of_pointer(&source.path, span) {
                found(*at, complaint);
            }
        }
    }
    findings
}

/// The parts of a document that lead somewhere, with their offsets in bytes.
#[derive(Default)]
struct Document<'a> {
    headings: BTreeSet<String>,
    links: Vec<(usize, String)>,
    spans: Vec<(usize, pulldown_cmark::CowStr<'a>)>,
}

impl Document<'_> {
    fn parse(text: &str) -> Document<'_> {
        let mut document = Document::default();
        let mut heading: Option<String> = None;
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.headings.extend(heading.take().map(|heading| anchor(&heading)));
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((range.start, dest_url.into_string()));
                }
                Event::Text(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    document.spans.push((range.start, code));
                }
                _ => {}
            }
        }
        document
    }
}

/// The name that a forge gives to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect::<String>().to_lowercase()
}

struct Tree<'a> {
    paths: &'a [String],
    headings: BTreeMap<&'a str, &'a BTreeSet<String>>,
    sources: BTreeMap<&'a str, &'a str>,
}

impl Tree<'_> {
    fn has_target(&self, from: &str, link: &str) -> bool {
        if link.contains("://") || link.starts_with("mailto:") {
            return true;
        }
        let (file, heading) =
            link.split_once('#').map_or((link, None), |(file, at)| (file, Some(at)));
        let target = if file.is_empty() { from.to_owned() } else { joined(from, file) };
        match heading {
            Some(heading) => {
                self.headings.get(target.as_str()).is_some_and(|there| there.contains(heading))
            }
            None => {
                let folder = format!("{}/", target.trim_end_matches('/'));
                self.paths.iter().any(|path| *path == target || path.starts_with(&folder))
            }
        }
    }

    fn complaint_of_pointer(&self, from: &str, span: &str) -> Option<String> {
        let (file, name) =
            span.split_once(':').map_or((span, None), |(file, name)| (file, Some(name)));
        if !file.ends_with(".rs") || file.contains([' ', '*', '<', '{', '…']) {
            return None;
        }
        let near = joined(from, file);
        let ending = format!("/{file}");
        let named: Vec<&String> = self
            .paths
            .iter()
            .filter(|path| **path == file || **path == near || path.ends_with(&ending))
            .collect();
        if named.is_empty() {
            return Some(format!("`{file}` is not in the repository"));
        }
        let name = name?;
        if name.starts_with(|char: char| char.is_ascii_digit()) {
            return Some(format!("`{span}` names a line, which moves; name a function"));
        }
        let is_there = named
            .iter()
            .any(|path| self.sources.get(path.as_str()).is_some_and(|text| defines(text, name)));
        (!is_there).then(|| format!("`{file}` defines no `{name}`"))
    }
}

fn defines(text: &str, name: &str) -> bool {
    let name = name.trim_end_matches("()");
    let name = name.rsplit("::").next().unwrap_or(name);
    ["fn", "struct", "enum", "trait", "const", "type", "mod", "static", "union"].iter().any(
        |kind| {
            let wanted = format!("{kind} {name}");
            text.match_indices(&wanted).any(|(at, _)| {
                let next = text[at + wanted.len()..].chars().next();
                !next.is_some_and(|char| char.is_alphanumeric() || char == '_')
            })
        },
    )
}

/// A path as it is written in the document `from`, from the root of the repository.
fn joined(from: &str, file: &str) -> String {
    let mut path = Path::new(from).parent().map(PathBuf::from).unwrap_or_default();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(document: &str) -> Vec<String> {
        let source =
            |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let sources = [
            source("docs/a.md", document),
            source("README.md", "# The way, and `more`\n"),
            source("crates/x/src/b.rs", "pub fn begin() {}\n"),
        ];
        let paths: Vec<String> = sources.iter().map(|source| source.path.clone()).collect();
        check(&sources, &paths).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn resolving_pointers_are_accepted() {
        let good = "[a](../README.md#the-way-and-more) [b](../crates/x) [c](https://x.org/y) \
            `b.rs:begin` `src/b.rs`\n\
                    # Here\n[d](#here) `crates/x/src/b.rs:begin()`";
        assert_eq!(complaints(good), Vec::<String>::new());
    }

    #[test]
    fn broken_pointers_are_reported_with_their_line() {
        for (bad, message) in [
            ("\n[a](README.md)", "docs/a.md:2: link to README.md, which is not there"),
            ("[a](../README.md#no)", "docs/a.md:1: link to ../README.md#no, which is not there"),
            ("`c.rs`", "docs/a.md:1: `c.rs` is not in the repository"),
            ("`b.rs:beg`", "docs/a.md:1: `b.rs` defines no `beg`"),
            ("`b.rs:12`", "docs/a.md:1: `b.rs:12` names a line, which moves; name a function"),
        ] {
            assert_eq!(complaints(bad), [message]);
        }
    }
}
