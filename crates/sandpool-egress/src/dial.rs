//! From a judged name to a connection: resolved once, each address judged, and the judged address dialled (EG3).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::address::Kind;
use crate::host::{Host, Target};
use crate::policy::{Reason, Rules};

/// How long a name may take to be resolved, and an address to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;

/// Names that are being resolved at the same time, for all sandboxes.
const LOOKUPS: usize = 64;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The rules forbid it.
    #[error("{0}")]
    Refused(Reason),
    /// The name has no address.
    #[error("the name cannot be resolved: {0}")]
    Resolve(String),
    /// No address answers.
    #[error("it does not answer: {0}")]
    Connect(String),
}

/// Dials for all sandboxes.
#[derive(Clone, Debug)]
pub struct Dialler {
    lookups: Arc<Semaphore>,
}

impl Default for Dialler {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Dialler {
    /// Connects to where the rules allow. The destination's name has been judged already.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, rules: &Rules, target: &Target, port: u16) -> Result<TcpStream, DialError> {
        let addresses = match target {
            Target::Address(address) => vec![*address],
            Target::Host(host) => match rules.addresses_of(host) {
                Some(addresses) => addresses.to_vec(),
                None => self.resolve(host, port).await?,
            },
        };
        let (mut refused, mut failed) = (None, None);
        for address in addresses.into_iter().take(ADDRESSES) {
            match connect(rules, address.to_canonical(), port).await {
                Ok(stream) => return Ok(stream),
                Err(DialError::Refused(reason)) => refused = Some(DialError::Refused(reason)),
                Err(error) => failed = Some(error),
            }
        }
        Err(refused.or(failed).unwrap_or_else(|| DialError::Resolve("it has no address".to_owned())))
    }

    /// Asks the host's resolver. A dot at the end keeps it from trying the name below the
    /// host's own domains, and from its file of hosts: names that DNS does not know are the policy's to give.
    async fn resolve(&self, host: &Host, port: u16) -> Result<Vec<IpAddr>, DialError> {
        let error = |why: &dyn std::fmt::Display| DialError::Resolve(why.to_string());
        let lookup = async {
            let _place = self.lookups.acquire().await.map_err(|gone| error(&gone))?;
            let found = tokio::net::lookup_host((format!("{host}."), port)).await.map_err(|why| error(&why))?;
            Ok(found.map(|address| address.ip()).collect())
        };
        timeout(LIMIT, lookup).await.map_err(|_| error(&"the resolver does not answer"))?
    }
}

/// Judges one address, and connects to it and no other.
async fn connect(rules: &Rules, address: IpAddr, port: u16) -> Result<TcpStream, DialError> {
    rules.judge_address(address, port).map_err(DialError::Refused)?;
    if !rules.lifts(address) && is_own(address, port) {
        return Err(DialError::Refused(Reason::NotPublic(Kind::Own)));
    }
    let failed = |error: io::Error| DialError::Connect(error.to_string());
    let stream = timeout(LIMIT, TcpStream::connect(SocketAddr::new(address, port)))
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    let peer = stream.peer_addr().map_err(failed)?.ip().to_canonical();
    if peer != address {
        return Err(DialError::Connect(format!("{peer} answered for it")));
    }
    // A relay adds nothing by waiting.
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// Whether the address is this host's: then the kernel would take it for our end as well. No packet is sent for that.
fn is_own(address: IpAddr, port: u16) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let ours = std::net::UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, port))?;
        socket.local_addr()
    });
    // Without a route there it cannot be dialled either.
    ours.is_ok_and(|ours| ours.ip() == address)
}

#[cfg(test)]
mod tests {
    use sandpool_wire::egress::{self as wire, Mode};

    use super::*;

    fn rules(hosts: &[(&str, &[&str])], lifted: &[&str]) -> Rules {
        let hosts = hosts.iter().map(|(name, addresses)| {
            ((*name).to_owned(), addresses.iter().map(|address| address.parse().unwrap()).collect())
        });
        let pool = wire::Policy {
            mode: Mode::Open,
            hosts: hosts.collect(),
            allow_addresses: lifted.iter().map(|net| (*net).to_owned()).collect(),
            ..wire::Policy::default()
        };
        Rules::parse(&pool, None).unwrap()
    }

    async fn dial(rules: &Rules, name: &str, port: u16) -> Result<TcpStream, DialError> {
        Dialler::default().dial(rules, &Target::parse(name).unwrap(), port).await
    }

    #[tokio::test]
    async fn names_that_lead_inside_are_refused_before_anything_is_dialled() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "0.0.0.0"] {
            let rules = rules(&[("rebound.example", &[address])], &[]);
            let found = dial(&rules, "rebound.example", port).await.unwrap_err();
            assert!(matches!(found, DialError::Refused(Reason::NotPublic(_))), "{address}: {found}");
        }
        assert!(timeout(Duration::from_millis(50), server.accept()).await.is_err());
    }

    #[tokio::test]
    async fn what_the_operator_lifts_is_reached_and_no_neighbour_of_it() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let rules = rules(
            &[("inside.example", &["10.255.255.1", "127.0.0.1"]), ("near.example", &["127.0.0.2"])],
            &["127.0.0.1"],
        );
        dial(&rules, "inside.example", port).await.unwrap();
        dial(&rules, "127.0.0.1", port).await.unwrap();
        assert!(dial(&rules, "near.example", port).await.is_err());
    }

    #[test]
    fn an_address_of_this_host_is_known() {
        assert!(is_own("127.0.0.1".parse().unwrap(), 80));
        assert!(!is_own("192.0.2.1".parse().unwrap(), 80));
    }
}
