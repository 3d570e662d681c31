//! A message as a small tree: as much XML as Omaha needs, bounded in size and depth, no DTD.

use std::fmt::Write as _;
use std::str::FromStr;

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

use super::{MAX_MESSAGE, OmahaError};

const MAX_DEPTH: usize = 16;
const MAX_ELEMENTS: usize = 1000;

#[derive(Debug)]
pub(super) struct Element {
    pub(super) name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Element>,
    line: usize,
    column: usize,
}

impl Element {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            attributes: vec![],
            children: vec![],
            line: 0,
            column: 0,
        }
    }

    pub(super) fn attr(mut self, name: &str, value: impl ToString) -> Self {
        self.attributes.push((name.into(), value.to_string()));
        self
    }

    pub(super) fn attr_if(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.attr(name, value),
            None => self,
        }
    }

    pub(super) fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn children_from(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    pub(super) fn need(&self, attribute: &'static str) -> Result<&str, OmahaError> {
        self.get(attribute).ok_or_else(|| OmahaError::Missing {
            line: self.line,
            column: self.column,
            element: self.name.clone(),
            attribute,
        })
    }

    pub(super) fn parse<T>(&self, attribute: &'static str) -> Result<T, OmahaError>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let value = self.need(attribute)?;
        value.parse().map_err(|error: T::Err| OmahaError::BadValue {
            line: self.line,
            column: self.column,
            element: self.name.clone(),
            attribute,
            value: value.chars().take(80).collect(),
            what: error.to_string(),
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Reads a document whose root is `root`.
    pub(super) fn read(text: &str, root: &str) -> Result<Self, OmahaError> {
        if text.len() > MAX_MESSAGE {
            return Err(OmahaError::TooLarge(text.len()));
        }
        let element = read_tree(text)?;
        if element.name != root {
            let what = format!("the root element is <{}>, expected <{root}>", element.name);
            return Err(OmahaError::Xml {
                line: element.line,
                column: element.column,
                what,
            });
        }
        Ok(element)
    }

    /// The document, indented for people who read traffic.
    pub(super) fn document(&self) -> String {
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        let _ = write!(out, "{indent}<{}", self.name);
        for (name, value) in &self.attributes {
            let _ = write!(out, " {name}=\"{}\"", escape(value));
        }
        if self.children.is_empty() {
            out.push_str("/>\n");
            return;
        }
        out.push_str(">\n");
        for child in &self.children {
            child.write(out, depth + 1);
        }
        let _ = writeln!(out, "{indent}</{}>", self.name);
    }
}

/// Line breaks become references, because a reader turns plain ones in attributes into spaces;
/// other control characters cannot be written in XML 1.0 at all.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn read_tree(text: &str) -> Result<Element, OmahaError> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().enable_all_checks(true);
    // The path from the root to the open element.
    let mut open: Vec<Element> = Vec::new();
    let mut root: Option<Element> = None;
    let mut elements = 0;
    loop {
        let start = position(reader.buffer_position());
        let fail = |what: String| Err(fail_at(text, start, what));
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => {
                return Err(fail_at(
                    text,
                    position(reader.error_position()),
                    error.to_string(),
                ));
            }
        };
        let closed = match event {
            Event::Start(tag) | Event::Empty(tag) if root.is_some() && open.is_empty() => {
                return fail(format!(
                    "<{}> after the end of the document",
                    tag.name().as_ref()
                ));
            }
            Event::Start(tag) => {
                if open.len() == MAX_DEPTH {
                    return fail(format!("elements are nested more than {MAX_DEPTH} deep"));
                }
                elements += 1;
                open.push(read_tag(text, start, &tag)?);
                None
            }
            Event::Empty(tag) => {
                elements += 1;
                Some(read_tag(text, start, &tag)?)
            }
            Event::End(_) => open.pop(),
            Event::DocType(_) => return fail("a document type is not allowed".into()),
            Event::Eof => break,
            _ => None,
        };
        if elements > MAX_ELEMENTS {
            return fail(format!("more than {MAX_ELEMENTS} elements"));
        }
        match (closed, open.last_mut()) {
            (Some(element), Some(parent)) => parent.children.push(element),
            (Some(element), None) => root = Some(element),
            (None, _) => {}
        }
    }
    match (root, open.pop()) {
        (_, Some(element)) => Err(fail_at(
            text,
            text.len(),
            format!("the text ends inside <{}>", element.name),
        )),
        (None, None) => Err(fail_at(text, text.len(), "there is no element".into())),
        (Some(root), None) => Ok(root),
    }
}

fn read_tag(text: &str, start: usize, tag: &BytesStart<'_>) -> Result<Element, OmahaError> {
    let mut element = Element::new(tag.local_name().as_ref());
    (element.line, element.column) = line_and_column(text, start);
    for attribute in tag.attributes() {
        let attribute = attribute.map_err(|e| fail_at(text, start, e.to_string()))?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|e| fail_at(text, start, e.to_string()))?;
        element
            .attributes
            .push((attribute.key.as_ref().to_owned(), value.into_owned()));
    }
    Ok(element)
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn fail_at(text: &str, offset: usize, what: String) -> OmahaError {
    let (line, column) = line_and_column(text, offset);
    OmahaError::Xml { line, column, what }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let line_start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    (line, before.len() - line_start + 1)
}
