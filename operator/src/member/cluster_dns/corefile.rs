//! A Corefile, read as CoreDNS reads it and more strictly: what is odd is an error, so that nobody changes a text that means
//! something else than it seems to.
//!
//! Tokens and blocks follow the lexer and the parser of the configuration language, `caddyfile/{lexer,parse}.go` of
//! github.com/coredns/caddy. Deliberately not here: what plugins make of their arguments, and the values of variables such as
//! `{$PORT}`, which stay as they are written.

use std::{collections::BTreeMap, ops::Range};

/// Imports of snippets in snippets are followed so deep.
const DEEPEST: usize = 8;

/// What a Corefile says, and where.
#[derive(Debug, Default)]
pub struct Corefile {
    pub blocks: Vec<Block>,
    /// What is imported beside the blocks, as it is written.
    pub imports: Vec<String>,
    pub comments: Vec<Comment>,
    snippets: BTreeMap<String, Vec<Directive>>,
}

/// A server block.
#[derive(Debug)]
pub struct Block {
    /// From the first key to the closing brace.
    pub span: Range<usize>,
    pub line: usize,
    pub keys: Vec<Key>,
    pub directives: Vec<Directive>,
}

/// What a block serves, and where: `dns://example.org:53`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub scheme: Option<String>,
    /// In lower case and without the dot at its end; the root is empty.
    pub zone: String,
    /// A number, or a variable.
    pub port: Option<String>,
}

/// A plugin with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    pub name: String,
    pub arguments: Vec<String>,
    /// Whether it has a block of its own.
    pub is_block: bool,
}

#[derive(Debug)]
pub struct Comment {
    /// From `#` to the end of the line.
    pub span: Range<usize>,
}

/// Why a Corefile cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Error {
    pub line: usize,
    pub why: &'static str,
}

/// Reads a Corefile.
///
/// # Errors
/// Where CoreDNS would not take it, or may take it in another way than it is read here.
pub fn read(text: &str) -> Result<Corefile, Error> {
    let (tokens, comments) = tokenize(text)?;
    let mut reader = Reader {
        tokens,
        next: 0,
        corefile: Corefile {
            comments,
            ..Corefile::default()
        },
    };
    while reader.next < reader.tokens.len() {
        reader.read_section()?;
    }
    let corefile = reader.corefile;
    let mut imports = corefile.imports.iter();
    if imports.any(|import| corefile.snippets.contains_key(import)) {
        return Err(Error {
            line: 1,
            why: "a snippet that is imported beside the blocks",
        });
    }
    Ok(corefile)
}

impl Corefile {
    /// The plugins of a block, with those that it imports from snippets.
    pub fn plugins<'a>(&'a self, block: &'a Block) -> Vec<&'a Directive> {
        let mut plugins = Vec::new();
        self.expand(&block.directives, DEEPEST, &mut plugins);
        plugins
    }

    fn expand<'a>(&'a self, directives: &'a [Directive], depth: usize, into: &mut Vec<&'a Directive>) {
        for directive in directives {
            let snippet = (directive.name == "import")
                .then(|| self.snippets.get(directive.arguments.first()?))
                .flatten();
            match snippet {
                Some(snippet) if depth > 0 => self.expand(snippet, depth - 1, into),
                _ => into.push(directive),
            }
        }
    }
}

impl Key {
    fn read(text: &str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_lowercase()), rest),
            None => (None, text),
        };
        let is_port = |port: &str| {
            !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) || port.starts_with('{')
        };
        let (zone, port) = match rest.rsplit_once(':') {
            Some((zone, port)) if is_port(port) => (zone, Some(port.to_owned())),
            _ => (rest, None),
        };
        Self {
            scheme,
            zone: zone.trim_end_matches('.').to_lowercase(),
            port,
        }
    }

    /// Whether it is asked in plain DNS.
    pub fn is_plain(&self) -> bool {
        self.scheme.as_deref().is_none_or(|scheme| scheme == "dns")
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(scheme) = &self.scheme {
            write!(f, "{scheme}://")?;
        }
        match self.zone.as_str() {
            "" => write!(f, ".")?,
            zone => write!(f, "{zone}")?,
        }
        match &self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Token {
    text: String,
    span: Range<usize>,
    first_line: usize,
    last_line: usize,
}

fn tokenize(text: &str) -> Result<(Vec<Token>, Vec<Comment>), Error> {
    let (mut tokens, mut comments) = (Vec::new(), Vec::new());
    let mut line = 1;
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        let first_line = line;
        match char {
            '\n' => line += 1,
            // CoreDNS drops it, wherever it is.
            '\r' if chars.peek().is_none_or(|(_, next)| *next != '\n') => {
                return Err(Error {
                    line,
                    why: "a carriage return that ends no line",
                });
            }
            '\u{feff}' => {
                return Err(Error {
                    line,
                    why: "a byte order mark",
                });
            }
            '#' => {
                let end = text[at..].find('\n').map_or(text.len(), |length| at + length);
                comments.push(Comment { span: at..end });
                while chars.next_if(|(at, _)| *at < end).is_some() {}
            }
            '"' => {
                let mut word = String::new();
                let mut is_escaped = false;
                let end = loop {
                    let Some((at, char)) = chars.next() else {
                        return Err(Error {
                            line: first_line,
                            why: "a quote that is not closed",
                        });
                    };
                    line += usize::from(char == '\n');
                    match (is_escaped, char) {
                        (false, '\\') => {
                            is_escaped = true;
                            continue;
                        }
                        (false, '"') => break at + 1,
                        (true, '"') | (false, _) => word.push(char),
                        (true, _) => word.extend(['\\', char]),
                    }
                    is_escaped = false;
                };
                tokens.push(Token {
                    text: word,
                    span: at..end,
                    first_line,
                    last_line: line,
                });
            }
            char if char.is_whitespace() => {}
            _ => {
                let is_end = |char: char| char.is_whitespace() || char == '#';
                let end = text[at..].find(is_end).map_or(text.len(), |length| at + length);
                while chars.next_if(|(at, _)| *at < end).is_some() {}
                tokens.push(Token {
                    text: text[at..end].to_owned(),
                    span: at..end,
                    first_line,
                    last_line: line,
                });
            }
        }
    }
    Ok((tokens, comments))
}

struct Reader {
    tokens: Vec<Token>,
    next: usize,
    corefile: Corefile,
}

impl Reader {
    /// An import, a snippet or a server block.
    fn read_section(&mut self) -> Result<(), Error> {
        if !self.begins_line() {
            return Err(self.error("text behind a closing brace"));
        }
        let first = self.next;
        if self.tokens[first].text == "import" {
            self.next += 1;
            let [argument] = self.rest_of_line().try_into().map_err(|_| Error {
                line: self.tokens[first].first_line,
                why: "an import of other than one thing",
            })?;
            self.corefile.imports.push(argument);
            return Ok(());
        }
        let line = self.tokens[first].first_line;
        let keys = self.read_keys()?;
        self.next += 1;
        let directives = self.read_directives(line)?;
        let end = self.tokens[self.next - 1].span.end;
        let snippet = match keys.as_slice() {
            [key] => key.strip_prefix('(').and_then(|name| name.strip_suffix(')')),
            _ => None,
        };
        if let Some(name) = snippet {
            let before = self.corefile.snippets.insert(name.to_owned(), directives);
            return match before {
                None => Ok(()),
                Some(_) => Err(Error {
                    line,
                    why: "a snippet of a name that there is already",
                }),
            };
        }
        self.corefile.blocks.push(Block {
            span: self.tokens[first].span.start..end,
            line,
            keys: keys.iter().map(|key| Key::read(key)).collect(),
            directives,
        });
        Ok(())
    }

    /// The keys of a block, up to its opening brace.
    fn read_keys(&mut self) -> Result<Vec<String>, Error> {
        let mut keys = Vec::new();
        let mut expects_another = true;
        loop {
            let Some(token) = self.tokens.get(self.next) else {
                return Err(self.error("a server block without braces"));
            };
            let is_new_line = self.begins_line();
            match token.text.as_str() {
                "{" if keys.is_empty() => return Err(self.error("an opening brace without a zone")),
                "{" if expects_another => return Err(self.error("a comma without a zone behind it")),
                "{" => return Ok(keys),
                "}" => return Err(self.error("a closing brace without an opening one")),
                "" => return Err(self.error("an empty zone")),
                _ if is_new_line && !expects_another => {
                    return Err(self.error("a server block without braces"));
                }
                "import" if is_new_line => return Err(self.error("an import among zones")),
                text => {
                    let key = text.strip_suffix(',');
                    expects_another = key.is_some();
                    keys.push(key.unwrap_or(text).to_owned());
                }
            }
            self.next += 1;
        }
    }

    /// The plugins of a block that begins at `line`, and its closing brace.
    fn read_directives(&mut self, line: usize) -> Result<Vec<Directive>, Error> {
        let unclosed = Error {
            line,
            why: "a brace that is not closed",
        };
        let mut directives = Vec::new();
        loop {
            let token = self.tokens.get(self.next).ok_or_else(|| unclosed.clone())?;
            match token.text.as_str() {
                "}" => {
                    self.next += 1;
                    return Ok(directives);
                }
                "{" => return Err(self.error("an opening brace without a plugin")),
                _ => {}
            }
            let mut directive = Directive {
                name: token.text.clone(),
                arguments: Vec::new(),
                is_block: false,
            };
            self.next += 1;
            let mut depth = 0_usize;
            while let Some(token) = self.tokens.get(self.next) {
                match token.text.as_str() {
                    "{" => {
                        depth += 1;
                        directive.is_block = true;
                    }
                    _ if depth == 0 && self.begins_line() => break,
                    "}" if depth == 0 => return Err(self.error("a closing brace on the line of a plugin")),
                    "}" => depth -= 1,
                    text if depth == 0 => directive.arguments.push(text.to_owned()),
                    _ => {}
                }
                self.next += 1;
            }
            if depth > 0 {
                return Err(unclosed);
            }
            directives.push(directive);
        }
    }

    fn rest_of_line(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while self.next < self.tokens.len() && !self.begins_line() {
            words.push(self.tokens[self.next].text.clone());
            self.next += 1;
        }
        words
    }

    /// Whether the next token is the first of its line.
    fn begins_line(&self) -> bool {
        let before = self.next.checked_sub(1).map(|before| &self.tokens[before]);
        let token = &self.tokens[self.next];
        before.is_none_or(|before| before.last_line < token.first_line)
    }

    fn error(&self, why: &'static str) -> Error {
        let token = self.tokens.get(self.next).or_else(|| self.tokens.last());
        let line = token.map_or(1, |token| token.first_line);
        Error { line, why }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(text: &str, wanted: Expect) {
        let shown = match read(text) {
            Err(error) => error.to_string(),
            Ok(corefile) => {
                let block = |block: &Block| {
                    let keys: Vec<String> = block.keys.iter().map(ToString::to_string).collect();
                    let plugins = corefile.plugins(block);
                    let plugins = plugins.iter().map(|plugin| match plugin.is_block {
                        true => format!("{} {:?} {{}}", plugin.name, plugin.arguments),
                        false => format!("{} {:?}", plugin.name, plugin.arguments),
                    });
                    format!("{}: {}", keys.join(" "), plugins.collect::<Vec<_>>().join("; "))
                };
                let imports = corefile.imports.iter().map(|import| format!("import {import}"));
                let lines: Vec<String> = corefile.blocks.iter().map(block).chain(imports).collect();
                lines.join("\n")
            }
        };
        wanted.assert_eq(&shown);
    }

    #[test]
    fn blocks_keys_and_plugins_are_read() {
        check(
            "dns://.:53, tls://Example.ORG.:853\n  10.0.0.0/8:53, 2001:db8::/32 {\n  errors\n  log . {\n    class error\n  } \n}\n",
            expect!["line 2: a server block without braces"],
        );
    }

    #[test]
    fn a_comma_goes_on_with_the_next_line_and_nothing_else_does() {
        check("a b,\nc\n{\n}", expect!["a b c: "]);
        check("a\nb {\n}", expect!["line 2: a server block without braces"]);
        check("a, {\n}", expect!["line 1: a comma without a zone behind it"]);
        check(".\nerrors\n", expect!["line 2: a server block without braces"]);
    }

    #[test]
    fn comments_quotes_and_variables_are_what_coredns_takes_them_for() {
        check(
            ".:{$PORT} { # { not a brace\n  hosts a#b\n  template \"x { \\\" \\d\ny\" z\n  forward . {%UP%}\n}",
            expect![[r#".:{$PORT}: hosts ["a"]; template ["x { \" \\d\ny", "z"]; forward [".", "{%UP%}"]"#]],
        );
        check(
            ". {\n errors \"x\n}",
            expect!["line 2: a quote that is not closed"],
        );
        check(". {\r\n errors\r\n}\r\n", expect![".: errors []"]);
        check(
            ". {\r errors\n}",
            expect!["line 1: a carriage return that ends no line"],
        );
    }

    #[test]
    fn braces_balance() {
        check(". {\n errors\n", expect!["line 1: a brace that is not closed"]);
        check(". {\n log {\n}\n", expect!["line 1: a brace that is not closed"]);
        check(
            ". {\n}\n}\n",
            expect!["line 3: a closing brace without an opening one"],
        );
        check(
            ". {\n errors }\n",
            expect!["line 2: a closing brace on the line of a plugin"],
        );
        check(". {\n} . {\n}", expect!["line 2: text behind a closing brace"]);
        check("{\n}", expect!["line 1: an opening brace without a zone"]);
    }

    #[test]
    fn snippets_are_no_blocks_and_are_followed() {
        check(
            "(base) {\n errors\n import more\n}\n(more) {\n kubernetes cluster.local {\n  ttl 5\n }\n}\n. {\n import base\n import /etc/x\n}",
            expect![[r#".: errors []; kubernetes ["cluster.local"] {}; import ["/etc/x"]"#]],
        );
        check(
            "(a) {\n}\n(a) {\n}",
            expect!["line 3: a snippet of a name that there is already"],
        );
        check(
            "(a) {\n import a\n}\n. {\n import a\n}",
            expect![[r#".: import ["a"]"#]],
        );
    }

    #[test]
    fn imports_take_one_thing() {
        check(
            "import custom/*.server # more\n. {\n}\nimport \"/x y\"",
            expect![
                "
                .: 
                import custom/*.server
                import /x y"
            ],
        );
        check("import a b", expect!["line 1: an import of other than one thing"]);
        check(
            "(a) {\n b {\n }\n}\nimport a",
            expect!["line 1: a snippet that is imported beside the blocks"],
        );
        check("a,\nimport b {\n}", expect!["line 2: an import among zones"]);
    }
}
