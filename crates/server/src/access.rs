//! What starting chaos experiments takes in this run.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use mcpscope_config::{ConfigErrors, Places, Settings};
use mcpscope_hub::ChaosToken;

use crate::failure::Failure;

const TOKEN_FILE: &str = "auth.chaos_token_file";
/// Of a token.
const BYTES: std::ops::RangeInclusive<usize> = 16..=256;
/// Of its file, of which blanks around the token may be a part.
const MAX_FILE_BYTES: u64 = 4096;

/// The token that whoever starts an experiment has to show, if one is needed.
#[derive(Clone)]
pub(crate) enum Access {
    /// Whoever reaches the listener may, which is a loopback one.
    Free,
    /// The token of the file that the configuration names.
    Configured(String),
    /// A token of this run, which nobody knows who is not told.
    Random(String),
}

impl Access {
    /// By `--no-auth`, by the file that the configuration names, or by a new token.
    ///
    /// # Errors
    /// The file cannot be read, or is no token; or the system has no random numbers.
    pub(crate) fn new(no_auth: bool, settings: &Settings, places: &Places) -> Result<Self, Failure> {
        if no_auth {
            return Ok(Self::Free);
        }
        let Some(named) = &settings.auth.chaos_token_file else { return random().map_err(Failure::internal) };
        let file = places.resolve(TOKEN_FILE, named);
        read(&file).map(Self::Configured).map_err(|error| {
            let placed = places.refuse(TOKEN_FILE, &format!("{error:#}"));
            ConfigErrors::none_of(placed).map_or_else(Failure::usage, |()| Failure::usage(error))
        })
    }

    /// What is let through.
    pub(crate) fn token(&self) -> ChaosToken {
        self.secret().map_or_else(ChaosToken::not_needed, ChaosToken::new)
    }

    /// The token itself, to be shown where it is [`Random`](Self::Random), and for the user's own commands.
    pub(crate) fn secret(&self) -> Option<&str> {
        match self {
            Self::Free => None,
            Self::Configured(secret) | Self::Random(secret) => Some(secret),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "Free",
            Self::Configured(_) => "Configured(secret)",
            Self::Random(_) => "Random(secret)",
        })
    }
}

/// 128 bits as hexadecimal digits.
fn random() -> anyhow::Result<Access> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("no random numbers for the chaos token")?;
    Ok(Access::Random(format!("{:032x}", u128::from_ne_bytes(bytes))))
}

/// The token that a file holds. What is wrong with it is said without it.
fn read(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let (text, mode) = contents(file).with_context(|| format!("{shown} cannot be read"))?;
    if mode & 0o004 != 0 {
        tracing::warn!("{shown}: every user of this machine can read the chaos token (mode {:04o})", mode & 0o7777);
    }
    let token = text.trim_ascii();
    let expected = "expected a token of 16 to 256 visible ASCII characters";
    anyhow::ensure!(BYTES.contains(&token.len()), "{shown}: {expected}, found {}", found(&text));
    let odd = token.iter().position(|byte| !byte.is_ascii_graphic());
    anyhow::ensure!(odd.is_none(), "{shown}: {expected}, found another one at {}", odd.unwrap_or_default() + 1);
    String::from_utf8(token.to_vec()).context(expected)
}

fn contents(file: &Path) -> io::Result<(Vec<u8>, u32)> {
    let file = File::open(file)?;
    let mode = file.metadata()?.mode();
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    Ok((text, mode))
}

fn found(text: &[u8]) -> String {
    match text.trim_ascii().len() {
        0 => "none".to_owned(),
        _ if text.len() as u64 > MAX_FILE_BYTES => format!("a file of more than {MAX_FILE_BYTES} bytes"),
        1 => "1 byte".to_owned(),
        len => format!("{len} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use mcpscope_config::Configuration;

    use super::*;

    /// A configuration file that names a file with this content, which it has the folder in common with.
    fn of_file(content: Option<&[u8]>) -> Result<Access, String> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mcpscope.yaml");
        fs::write(&config, "auth:\n  chaos_token_file: token\n").unwrap();
        if let Some(content) = content {
            fs::write(folder.path().join("token"), content).unwrap();
            fs::set_permissions(folder.path().join("token"), Permissions::from_mode(0o600)).unwrap();
        }
        let Configuration { settings, places, .. } = Configuration::load(&[config], []).unwrap();
        Access::new(false, &settings, &places)
            .map_err(|failure| failure.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn the_token_is_what_the_file_holds_without_blanks() {
        for content in ["0123456789abcdef", "0123456789abcdef\n", " \t0123456789abcdef\r\n\n"] {
            let access = of_file(Some(content.as_bytes())).unwrap();
            assert_eq!(access.secret(), Some("0123456789abcdef"));
            assert!(access.token().admits(Some(b"Bearer 0123456789abcdef")), "{content:?}");
            assert!(!access.token().admits(None));
            assert!(!format!("{access:?}").contains("0123"));
        }
        let long = "!~".repeat(128);
        assert_eq!(of_file(Some(long.as_bytes())).unwrap().secret(), Some(&*long));
    }

    #[test]
    fn what_is_no_token_is_refused_where_it_is_named_and_not_shown() {
        let many = [b'a'; 257];
        let large = [b' '; 5000];
        let filled = [&large[..], b"0123456789abcdef"].concat();
        for (content, expected) in [
            (None, "token cannot be read: No such file or directory (os error 2)"),
            (Some(&b""[..]), "token: expected a token of 16 to 256 visible ASCII characters, found none"),
            (Some(b"\n"), "token: expected a token of 16 to 256 visible ASCII characters, found none"),
            (Some(b"x"), "token: expected a token of 16 to 256 visible ASCII characters, found 1 byte"),
            (Some(b"0123456789abcde"), "token: expected a token of 16 to 256 visible ASCII characters, found 15 bytes"),
            (Some(&many), "token: expected a token of 16 to 256 visible ASCII characters, found 257 bytes"),
            (Some(&filled), "token: expected a token of 16 to 256 visible ASCII characters, found none"),
            (
                Some(b"0123456789 abcdef"),
                "token: expected a token of 16 to 256 visible ASCII characters, found another one at 11",
            ),
            (
                Some("0123456789abcd\u{e9}".as_bytes()),
                "token: expected a token of 16 to 256 visible ASCII characters, found another one at 15",
            ),
        ] {
            let error = of_file(content).unwrap_err();
            assert_eq!(error, format!("mcpscope.yaml:2:21: auth.chaos_token_file: {expected}"));
        }
    }

    #[test]
    fn a_random_one_is_another_each_time() {
        let Configuration { settings, places, .. } = Configuration::load(&[], []).unwrap();
        let [one, other] = [(); 2].map(|()| Access::new(false, &settings, &places).unwrap());
        let [Access::Random(one), Access::Random(other)] = [&one, &other] else { panic!("{one:?}") };
        assert_ne!(one, other);
        assert!(one.len() == 32 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    }

    #[test]
    fn none_is_needed_where_that_was_asked_for() {
        let Configuration { settings, places, .. } = Configuration::load(&[], []).unwrap();
        let access = Access::new(true, &settings, &places).unwrap();
        assert!(access.secret().is_none() && access.token().admits(None) && !access.token().is_needed());
    }
}
