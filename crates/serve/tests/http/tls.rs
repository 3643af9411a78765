//! TLS on both addresses, and certificates of clients.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fcdcc_serve::Tls;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::calls::{self, Client, run};
use crate::client::{Answer, connect, get, read_answer, request};
use crate::site::{Site, body, check, images, scores};

const INFER: &str = "/v2/models/digits/infer";

/// A certificate and its key, in PEM.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

/// An authority, and certificates of a server and a client.
struct Authority {
    folder: TempDir,
    pem: String,
    server: Pair,
    client: Pair,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let pair = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap().pem();
            Pair { certificate, key: key.serialize_pem() }
        };
        let (server, client) = (pair("localhost"), pair("client"));
        Self { folder: tempfile::tempdir().unwrap(), pem, server, client }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn tls(&self, clients: bool) -> Tls {
        Tls {
            certificate: self.write("server.pem", &self.server.certificate),
            key: self.write("server.key", &self.server.key),
            client_ca: clients.then(|| self.write("ca.pem", &self.pem)),
        }
    }

    /// Sends a request over TLS; `None` where the server ends the connection.
    fn ask(&self, address: SocketAddr, client: Option<&Pair>, bytes: &[u8]) -> Option<Answer> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(connection, connect(address));
        stream.write_all(bytes).ok()?;
        // A refusal of the certificate comes as an alert, which is an error of reading.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read_answer(&mut stream))).ok().flatten()
    }

    async fn channel(
        &self,
        address: SocketAddr,
        client: Option<&Pair>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem)).domain_name("localhost");
        if let Some(pair) = client {
            tls = tls.identity(Identity::from_pem(&pair.certificate, &pair.key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }
}

#[test]
fn both_addresses_speak_tls() {
    let authority = Authority::new();
    let site = Site::with("", |options| options.tls = Some(authority.tls(false)));
    let image = images(1, 1);
    let bytes = request("POST", INFER, &[], &body(&image));
    let answer = authority.ask(site.address, None, &bytes).expect("an answer");
    check(&scores(&answer.json()), &image);
    run(async {
        let mut client = Client::new(authority.channel(site.grpc, None).await.unwrap());
        let answer = client.model_infer(calls::request(&image)).await.unwrap().into_inner();
        check(&calls::scores(&answer), &image);
    });
    // Another authority's clients do not trust it, and without TLS there is no answer.
    let other = Authority::new();
    assert!(other.ask(site.address, None, &bytes).is_none());
    let plain = std::panic::catch_unwind(|| get(site.address, "/v2").status);
    assert!(plain.is_err(), "an answer without TLS: {plain:?}");
    assert!(authority.ask(site.address, None, &bytes).is_some(), "it does not answer any more");
}

#[test]
fn clients_need_a_certificate_where_an_authority_is_given() {
    let authority = Authority::new();
    let site = Site::with("", |options| options.tls = Some(authority.tls(true)));
    let bytes = request("GET", "/v2", &[], b"");
    let other = Authority::new();
    assert!(authority.ask(site.address, None, &bytes).is_none());
    assert!(authority.ask(site.address, Some(&other.client), &bytes).is_none());
    assert_eq!(authority.ask(site.address, Some(&authority.client), &bytes).unwrap().status, 200);
    run(async {
        let image = images(1, 1);
        for (pair, admitted) in [(None, false), (Some(&other.client), false), (Some(&authority.client), true)]
        {
            // A client hears of the refusal when it connects, or at its first call.
            let answered = match authority.channel(site.grpc, pair).await {
                Ok(channel) => Client::new(channel).model_infer(calls::request(&image)).await.is_ok(),
                Err(_) => false,
            };
            assert_eq!(answered, admitted);
        }
    });
}

#[test]
fn an_address_beyond_this_machine_is_allowed_with_tls() {
    let authority = Authority::new();
    let site = Site::with("", |options| {
        options.tls = Some(authority.tls(false));
        options.address = "0.0.0.0:0".to_owned();
    });
    let local = SocketAddr::from(([127, 0, 0, 1], site.address.port()));
    let bytes = request("GET", "/v2", &[], b"");
    assert_eq!(authority.ask(local, None, &bytes).unwrap().status, 200);
}

#[test]
fn renewed_files_are_taken_without_a_restart_and_damaged_ones_are_not() {
    let first = Authority::new();
    let site = Site::with("", |options| options.tls = Some(first.tls(false)));
    let server = site.server.as_ref().unwrap();
    let bytes = request("GET", "/v2", &[], b"");
    let serves = |authority: &Authority| authority.ask(site.address, None, &bytes).is_some();
    assert!(serves(&first));
    // Both files of another authority, on demand.
    let second = Authority::new();
    first.write("server.pem", &second.server.certificate);
    first.write("server.key", &second.server.key);
    server.reload().unwrap();
    assert!(serves(&second) && !serves(&first));
    // The key of a third one alone: the second stays in force, and the reason is said.
    let third = Authority::new();
    first.write("server.key", &third.server.key);
    let refused = server.reload().unwrap_err().to_string();
    assert!(refused.contains("does not go with the key"), "{refused}");
    assert!(serves(&second));
    // The certificate follows; the server finds it without a signal.
    first.write("server.pem", &third.server.certificate);
    crate::site::wait_for("the renewal", || serves(&third));
    run(async {
        assert!(third.channel(site.grpc, None).await.is_ok());
        assert!(second.channel(site.grpc, None).await.is_err());
    });
    let metrics = third.ask(site.address, None, &request("GET", "/metrics", &[], b"")).unwrap().text();
    for line in [
        "fcdcc_serve_credentials_reloads_total{outcome=\"taken\"} 2",
        "fcdcc_serve_certificate_end_seconds 67090118400",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("outcome=\"refused\"} 0"), "{metrics}");
}
