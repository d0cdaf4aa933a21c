//! The life of a plugin: its configuration is read and checked, then it is opened, reconfigured any number of times, and
//! stopped.
//!
//! Owns [`Lifecycle`], which each plugin implements beside its own trait, and the wrappers by which a daemon holds a
//! plugin of a kind without knowing which one it is. Reading a configuration touches nothing outside; only
//! [`Configured::open`] does.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use config::fault::Faults;
use config::{Document, Section};
use spiffe::clock::Clock;
use spiffe::random::Random;
use spiffe::trust_domain::TrustDomain;

use crate::error::{Error, ErrorKind};
use crate::join_token::{JoinTokens, TokenSource};

/// What a daemon offers its plugins.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HostServices {
    pub trust_domain: TrustDomain,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// On a server: its join tokens.
    pub join_tokens: Option<Arc<dyn JoinTokens>>,
    /// On an agent: the token it was given.
    pub join_token: Option<TokenSource>,
}

impl HostServices {
    pub fn new(trust_domain: TrustDomain, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            trust_domain,
            clock,
            random,
            join_tokens: None,
            join_token: None,
        }
    }

    #[must_use]
    pub fn with_join_tokens(mut self, tokens: Arc<dyn JoinTokens>) -> Self {
        self.join_tokens = Some(tokens);
        self
    }

    #[must_use]
    pub fn with_join_token(mut self, token: Option<TokenSource>) -> Self {
        self.join_token = token;
        self
    }
}

/// A plugin that can be opened, reconfigured and stopped.
#[async_trait]
pub trait Lifecycle: Sized + Send + Sync + Debug + 'static {
    /// `plugin_data`, read and checked.
    type Config: Clone + PartialEq + Debug + Send + Sync + 'static;

    /// Makes the plugin ready for use. It may read files, start threads and connect.
    async fn open(config: Self::Config, host: &HostServices) -> Result<Self, Error>;

    /// Takes another configuration while it works. On an error the former one stays in force.
    ///
    /// # Errors
    /// NotOffered by plugins whose configuration needs a restart.
    async fn reconfigure(&self, _config: Self::Config) -> Result<(), Error> {
        Err(Error::new(
            "",
            ErrorKind::NotOffered,
            "a changed configuration of this plugin takes effect at the next start",
        ))
    }

    /// Gives back what it holds. Nothing is asked of it afterwards.
    async fn stop(&self) {}
}

/// A plugin of kind `T` whose configuration was read; it is not open yet.
pub struct Configured<T: ?Sized> {
    name: &'static str,
    /// Where its configuration can be read again.
    data_file: Option<PathBuf>,
    opener: Arc<dyn Open<T>>,
}

/// A plugin of kind `T` at work.
pub struct Running<T: ?Sized> {
    name: &'static str,
    data_file: Option<PathBuf>,
    plugin: Arc<T>,
    control: Arc<dyn Control>,
}

/// What came of reading a plugin's configuration again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// It has no file of its own.
    NoFile,
    Unchanged,
    Changed,
}

/// Why a plugin's configuration was not taken. The former one is in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("{0}")]
    Faults(Faults),
    #[error(transparent)]
    Refused(Error),
}

impl<T: ?Sized> Configured<T> {
    pub(crate) fn new(
        name: &'static str,
        data_file: Option<PathBuf>,
        opener: Arc<dyn Open<T>>,
    ) -> Self {
        Self {
            name,
            data_file,
            opener,
        }
    }

    /// One that no file configures.
    pub(crate) fn of<P: Lifecycle>(name: &'static str, spec: PluginSpec<P, T>) -> Self
    where
        T: Send + Sync + 'static,
    {
        Self::new(name, None, Arc::new(spec))
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub async fn open(&self, host: &HostServices) -> Result<Running<T>, Error> {
        let (plugin, control) = self.opener.open(host).await?;
        Ok(Running {
            name: self.name,
            data_file: self.data_file.clone(),
            plugin,
            control,
        })
    }
}

impl<T: ?Sized> Running<T> {
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn plugin(&self) -> &Arc<T> {
        &self.plugin
    }

    /// Reads `plugin_data_file` again and gives the plugin what it holds, if that differs (SPIRE: on SIGUSR1).
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        match &self.data_file {
            None => Ok(Reloaded::NoFile),
            Some(file) => self.control.reload(file).await,
        }
    }

    pub async fn stop(&self) {
        self.control.stop().await;
    }
}

impl<T: ?Sized> Clone for Configured<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            data_file: self.data_file.clone(),
            opener: Arc::clone(&self.opener),
        }
    }
}

impl<T: ?Sized> Clone for Running<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            data_file: self.data_file.clone(),
            plugin: Arc::clone(&self.plugin),
            control: Arc::clone(&self.control),
        }
    }
}

impl<T: ?Sized> Debug for Configured<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("Configured").field(&self.opener).finish()
    }
}

impl<T: ?Sized> Debug for Running<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("Running").field(&self.control).finish()
    }
}

/// [`Lifecycle::open`] without the type of the plugin.
#[async_trait]
pub(crate) trait Open<T: ?Sized>: Send + Sync + Debug {
    async fn open(&self, host: &HostServices) -> Result<(Arc<T>, Arc<dyn Control>), Error>;
}

/// The rest of [`Lifecycle`] without the type of the plugin.
#[async_trait]
pub(crate) trait Control: Send + Sync + Debug {
    async fn reload(&self, file: &Path) -> Result<Reloaded, ReloadError>;
    async fn stop(&self);
}

/// How a plugin reads its `plugin_data`; what is wrong is recorded on the section's document.
pub(crate) type Read<C> = fn(&Section) -> Option<C>;

/// The configuration of plugin `P`, which is a `T`.
pub(crate) struct PluginSpec<P: Lifecycle, T: ?Sized> {
    pub(crate) config: P::Config,
    pub(crate) read: Read<P::Config>,
    pub(crate) as_kind: fn(Arc<P>) -> Arc<T>,
}

impl<P: Lifecycle, T: ?Sized> Debug for PluginSpec<P, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.config.fmt(f)
    }
}

#[async_trait]
impl<P: Lifecycle, T: ?Sized + Send + Sync + 'static> Open<T> for PluginSpec<P, T> {
    async fn open(&self, host: &HostServices) -> Result<(Arc<T>, Arc<dyn Control>), Error> {
        let plugin = Arc::new(P::open(self.config.clone(), host).await?);
        let control = Controlled {
            plugin: Arc::clone(&plugin),
            read: self.read,
            in_force: tokio::sync::Mutex::new(self.config.clone()),
        };
        Ok(((self.as_kind)(plugin), Arc::new(control)))
    }
}

struct Controlled<P: Lifecycle> {
    plugin: Arc<P>,
    read: Read<P::Config>,
    /// Held over a change, so that two do not overtake each other.
    in_force: tokio::sync::Mutex<P::Config>,
}

impl<P: Lifecycle> Debug for Controlled<P> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.plugin.fmt(f)
    }
}

#[async_trait]
impl<P: Lifecycle> Control for Controlled<P> {
    async fn reload(&self, file: &Path) -> Result<Reloaded, ReloadError> {
        let path = file.to_owned();
        // SPIRE: variables are not expanded in such a file.
        let document = tokio::task::spawn_blocking(move || Document::load(&path, None))
            .await
            .map_err(|_cancelled| ReloadError::Refused(Error::interrupted("")))?
            .map_err(ReloadError::Faults)?;
        let config = (self.read)(&document.root());
        document.check().map_err(ReloadError::Faults)?;
        let Some(config) = config else {
            // Nothing is read only together with a fault, which was found above.
            return Ok(Reloaded::Unchanged);
        };
        let mut in_force = self.in_force.lock().await;
        if *in_force == config {
            return Ok(Reloaded::Unchanged);
        }
        self.plugin
            .reconfigure(config.clone())
            .await
            .map_err(ReloadError::Refused)?;
        *in_force = config;
        Ok(Reloaded::Changed)
    }

    async fn stop(&self) {
        self.plugin.stop().await;
    }
}
