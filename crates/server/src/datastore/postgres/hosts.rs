//! Which hosts to try: the lists `host`, `hostaddr` and `port`.

use std::net::{AddrParseError, IpAddr};
use std::path::Path;

use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::conninfo::Setting;
use super::options::{Reader, wrong};
use crate::datastore::error::SettingsError;

/// The most hosts of a connection.
const MOST: usize = 16;
const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 5432;

/// One place to look for the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// A name, an address, or the directory of a socket.
    pub(super) host: String,
    /// Where the host is, if its name is not to be looked up.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

impl Target {
    /// For messages.
    pub(super) fn name(&self) -> &str {
        &self.host
    }

    pub(super) fn is_socket(&self) -> bool {
        self.address.is_none() && self.host.starts_with('/')
    }

    /// Whether no network lies between here and there.
    pub(super) fn is_on_this_machine(&self) -> bool {
        let address = self.address.or_else(|| self.host.parse().ok());
        match address {
            Some(address) => address.is_loopback(),
            None => self.is_socket() || self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Adds this place to a configuration that names none.
    pub(super) fn add_to(&self, config: &mut Config) {
        if self.is_socket() {
            // Beside hosts that are reached with TLS.
            config
                .host_path(Path::new(&self.host))
                .ssl_mode(SslMode::Disable);
        } else {
            config.host(&self.host);
        }
        if let Some(address) = self.address {
            config.hostaddr(address);
        }
        config.port(self.port);
    }
}

/// Takes the three lists, which must be of one length where they are lists.
pub(super) fn read(settings: &mut Reader) -> Result<Vec<Target>, SettingsError> {
    let hosts = settings.take("host");
    let mut filled = |key| {
        let setting = settings.take(key);
        setting.filter(|setting| !setting.text().is_empty())
    };
    let (addresses, ports) = (filled("hostaddr"), filled("port"));
    let host_list: Vec<&str> = match (&hosts, &addresses) {
        (Some(setting), _) => setting.text().split(',').collect(),
        (None, Some(_)) => Vec::new(),
        (None, None) => vec![""],
    };
    let address_list = match &addresses {
        Some(setting) => address_list(setting, host_list.len())?,
        None => Vec::new(),
    };
    let count = host_list.len().max(address_list.len());
    if let (true, Some(setting)) = (count > MOST, hosts.as_ref().or(addresses.as_ref())) {
        let because = format!("it names more than {MOST} hosts");
        return Err(wrong("host", setting, because));
    }
    let port_list = match &ports {
        Some(setting) => port_list(setting, count)?,
        None => Vec::new(),
    };
    let mut targets = Vec::with_capacity(count);
    for place in 0..count {
        let address: Option<IpAddr> = address_list.get(place).copied();
        let host = match (host_list.get(place).copied(), address) {
            (None | Some(""), Some(address)) => address.to_string(),
            (None | Some(""), None) => DEFAULT_HOST.to_owned(),
            (Some(host), _) => host.to_owned(),
        };
        if let (true, Some(setting)) = (host.starts_with('@'), &hosts) {
            let because = "sockets in the abstract name space are not supported";
            return Err(wrong("host", setting, because));
        }
        let port = port_list.get(place).or(port_list.first());
        targets.push(Target {
            host,
            address,
            port: port.copied().unwrap_or(DEFAULT_PORT),
        });
    }
    Ok(targets)
}

fn address_list(setting: &Setting, hosts: usize) -> Result<Vec<IpAddr>, SettingsError> {
    let parsed: Result<Vec<IpAddr>, AddrParseError> =
        setting.text().split(',').map(str::parse).collect();
    let because = "it is not an IP address, or a list of them";
    let addresses = parsed.map_err(|_value| wrong("hostaddr", setting, because))?;
    if hosts != 0 && hosts != addresses.len() {
        let because = format!("it has {} addresses for {hosts} hosts", addresses.len());
        return Err(wrong("hostaddr", setting, because));
    }
    Ok(addresses)
}

fn port_list(setting: &Setting, hosts: usize) -> Result<Vec<u16>, SettingsError> {
    let mut ports = Vec::new();
    for text in setting.text().split(',') {
        let port = match text {
            "" => Some(DEFAULT_PORT),
            text => text.parse().ok().filter(|port| *port != 0),
        };
        let because = "it is not a number from 1 to 65535, or a list of them";
        ports.push(port.ok_or_else(|| wrong("port", setting, because))?);
    }
    if ports.len() > 1 && ports.len() != hosts {
        let because = format!("it has {} ports for {hosts} hosts", ports.len());
        return Err(wrong("port", setting, because));
    }
    Ok(ports)
}
