//! Which implementation plays a role, and where its program is.
//!
//! `PLASTRON_TEST_SERVER` and `PLASTRON_TEST_AGENT` are `plastron` (the default) or `spire`. `PLASTRON_BIN` names the
//! built program; without it, it is built. SPIRE's are named by `SPIRE_SERVER_BIN` and `SPIRE_AGENT_BIN`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Plastron,
    Spire,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Agent,
}

impl Role {
    /// The name by which the program is called; Plastron answers to both through links.
    pub fn program(self) -> &'static str {
        match self {
            Self::Server => "spire-server",
            Self::Agent => "spire-agent",
        }
    }

    fn subject_variable(self) -> &'static str {
        match self {
            Self::Server => "PLASTRON_TEST_SERVER",
            Self::Agent => "PLASTRON_TEST_AGENT",
        }
    }

    fn spire_variable(self) -> &'static str {
        match self {
            Self::Server => "SPIRE_SERVER_BIN",
            Self::Agent => "SPIRE_AGENT_BIN",
        }
    }
}

impl Subject {
    /// The implementation that this run tests in `role`.
    pub fn of(role: Role) -> Result<Self> {
        let variable = role.subject_variable();
        match std::env::var(variable).as_deref() {
            Ok("plastron") | Err(_) => Ok(Self::Plastron),
            Ok("spire") => Ok(Self::Spire),
            Ok(other) => bail!("{variable} is {other:?}; it takes plastron or spire"),
        }
    }

    /// True when both roles are Plastron's: for tests of what SPIRE does not promise.
    pub fn only_plastron() -> Result<bool> {
        Ok(Self::of(Role::Server)? == Self::Plastron && Self::of(Role::Agent)? == Self::Plastron)
    }

    fn binary(self, role: Role) -> Result<PathBuf> {
        match self {
            Self::Plastron => plastron(),
            Self::Spire => {
                let variable = role.spire_variable();
                Ok(PathBuf::from(
                    std::env::var_os(variable).with_context(|| format!("{variable} is not set"))?,
                ))
            }
        }
    }

    /// Whose command line talks to the programs: `PLASTRON_TEST_CLI`, or the one that plays the role.
    #[must_use]
    pub fn command_line(self) -> Self {
        match std::env::var("PLASTRON_TEST_CLI").as_deref() {
            Ok("spire") => Self::Spire,
            Ok("plastron") => Self::Plastron,
            _ => self,
        }
    }

    /// Makes a link to the program in `dir`, under the name of its role, and returns the link.
    pub fn install(self, role: Role, dir: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(dir)?;
        let link = dir.join(role.program());
        let binary = self.binary(role)?;
        if !link.exists() {
            std::os::unix::fs::symlink(&binary, &link)
                .with_context(|| format!("link {} to {}", link.display(), binary.display()))?;
        }
        Ok(link)
    }
}

/// The `plastron` program: `PLASTRON_BIN`, or built now with the cargo that runs the tests.
pub fn plastron() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("PLASTRON_BIN") {
        return Ok(PathBuf::from(path));
    }
    match BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path.clone()),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let built = Command::new(cargo)
        .args([
            "build",
            "--locked",
            "--quiet",
            "--package=plastron",
            "--bin=plastron",
        ])
        .args(["--message-format=json", "--manifest-path"])
        .arg(manifest)
        .output()
        .context("run cargo to build plastron")?;
    if !built.status.success() {
        bail!(
            "cargo build failed: {}",
            String::from_utf8_lossy(&built.stderr)
        );
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| {
            let named = message.pointer("/target/name")? == "plastron";
            let executable = message.get("executable")?.as_str()?;
            named.then(|| PathBuf::from(executable))
        })
        .context("cargo named no executable")
}
