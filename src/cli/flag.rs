//! The flags of commands. A flag is a constant that knows the type of its value, so that a slip in its name or its type
//! does not compile. One description serves both command lines: SPIRE's (`go_flags.rs`) and the native one (clap,
//! `native.rs`).

use std::ffi::OsString;
use std::marker::PhantomData;
use std::time::Duration;

use super::args::Value;

/// How the text of a flag is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// Any text.
    Text,
    /// Present or absent; also `=true` and `=false`.
    Switch,
    /// A point in time as Unix seconds; natively RFC 3339 too.
    Time,
    /// A lifetime. SPIRE takes bare seconds; natively `90`, `90s` and `1h30m` mean what they say.
    Lifetime,
    /// A Go duration (`1h30m`); natively bare seconds too.
    Duration,
    /// A duration whose faults SPIRE words differently: how long to wait.
    Timeout,
    /// The format of the output.
    Format,
    /// May be given several times.
    List,
    /// Comma-separated values, may also be given several times.
    CommaList,
    /// A word without dashes; native only.
    Word,
    /// Any number of them; native only.
    Words,
    /// Everything that follows, unread; native only.
    Rest,
}

/// Which command lines have a flag or a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    Both,
    Native,
}

/// One flag under its two names, whatever the type of its value: a row in a command's list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlagSpec {
    /// SPIRE's name, without dashes: `spiffeID`. Also the key in [`super::args::Args`].
    pub(crate) spire: &'static str,
    /// The native name, without dashes: `spiffe-id`. Empty: SPIRE's command line alone has it.
    pub(crate) native: &'static str,
    pub(crate) kind: FlagKind,
    /// Shown in help and used when the flag is absent; empty for none.
    pub(crate) default: &'static str,
    /// The same on SPIRE's command line alone, where SPIRE's default is not ours.
    pub(crate) spire_default: &'static str,
    pub(crate) surface: Surface,
    /// Natively its value may also stand without the flag's name.
    pub(crate) positional: bool,
    /// What stands for the value in the native help.
    pub(crate) value_name: &'static str,
    /// A name that SPIRE's flag once had; empty for none.
    pub(crate) former: &'static str,
    pub(crate) help: &'static str,
}

impl FlagSpec {
    const fn new(
        spire: &'static str,
        native: &'static str,
        kind: FlagKind,
        help: &'static str,
    ) -> Self {
        Self {
            spire,
            native,
            kind,
            default: "",
            spire_default: "",
            surface: Surface::Both,
            positional: false,
            value_name: "VALUE",
            former: "",
            help,
        }
    }

    /// The default on SPIRE's command line.
    pub(crate) const fn default_on_spire(&self) -> &'static str {
        if self.spire_default.is_empty() {
            self.default
        } else {
            self.spire_default
        }
    }
}

/// What the value of a flag is read as.
pub(crate) trait FlagValue: 'static {
    type Read<'a>;

    /// `None`: the flag is absent and has no default.
    fn read(value: Option<&Value>) -> Self::Read<'_>;
}

/// A flag whose value is a `T`.
#[derive(Debug)]
pub(crate) struct Flag<T: FlagValue> {
    pub(crate) spec: FlagSpec,
    value: PhantomData<fn() -> T>,
}

impl<T: FlagValue> Clone for Flag<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: FlagValue> Copy for Flag<T> {}

impl<T: FlagValue> Flag<T> {
    const fn new(
        spire: &'static str,
        native: &'static str,
        kind: FlagKind,
        help: &'static str,
    ) -> Self {
        Self {
            spec: FlagSpec::new(spire, native, kind, help),
            value: PhantomData,
        }
    }

    /// A flag whose value natively needs no name before it, such as the one ID that a command is about.
    pub(crate) const fn positional(mut self) -> Self {
        self.spec.positional = true;
        self
    }

    /// A flag that SPIRE's command does not have.
    pub(crate) const fn natively(mut self) -> Self {
        self.spec.surface = Surface::Native;
        self
    }

    pub(crate) const fn or(mut self, default: &'static str) -> Self {
        self.spec.default = default;
        self
    }

    /// A default of SPIRE's command line alone.
    pub(crate) const fn or_on_spire(mut self, default: &'static str) -> Self {
        self.spec.spire_default = default;
        self
    }

    /// What stands for the value in the native help.
    pub(crate) const fn value(mut self, name: &'static str) -> Self {
        self.spec.value_name = name;
        self
    }

    /// The name that SPIRE's flag once had.
    pub(crate) const fn formerly(mut self, name: &'static str) -> Self {
        self.spec.former = name;
        self
    }
}

type Name = &'static str;

impl Flag<String> {
    pub(crate) const fn text(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Text, help)
    }

    pub(crate) const fn word(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Word, help)
    }

    pub(crate) const fn format(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Format, help)
    }
}

impl Flag<bool> {
    pub(crate) const fn switch(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Switch, help)
    }
}

/// Whole seconds.
impl Flag<i64> {
    pub(crate) const fn time(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Time, help)
    }

    pub(crate) const fn lifetime(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Lifetime, help)
    }
}

impl Flag<Duration> {
    pub(crate) const fn duration(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Duration, help)
    }

    pub(crate) const fn timeout(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Timeout, help)
    }
}

impl Flag<Vec<String>> {
    pub(crate) const fn list(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::List, help)
    }

    pub(crate) const fn comma_list(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::CommaList, help)
    }

    pub(crate) const fn words(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Words, help)
    }
}

impl Flag<Vec<OsString>> {
    pub(crate) const fn rest(spire: Name, native: Name, help: &'static str) -> Self {
        Self::new(spire, native, FlagKind::Rest, help)
    }
}
