//! The server that gets the load: its address, and the bytes of the request.
//!
//! Invariant: the body of a request is built once; every request of a load sends the same bytes.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Method, Uri};
use bytes::Bytes;
use fcdcc::model::Tensor;
use fcdcc::{Error, Result};
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::json;
use tokio_rustls::TlsConnector;

use super::message::{Answer, Request};
use super::{LoadOptions, unavailable};
use crate::datatype::{Datatype, from_bytes, write_bytes};
use crate::tls::roots;

/// A server and a model on it.
pub(super) struct Target {
    url: String,
    address: SocketAddr,
    host: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    token: Option<HeaderValue>,
    model: String,
    /// Names, datatypes and elements of the inputs.
    inputs: Vec<(String, Datatype, Tensor)>,
}

/// What a model says of itself.
#[derive(Deserialize)]
struct Metadata {
    inputs: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

impl Target {
    /// # Errors
    /// [`Error::InvalidParameter`] for a URL, name or token that is none, [`Error::Unavailable`] for a host without
    /// address, [`Error::File`] for an authority that is no certificate.
    pub(super) fn new(options: &LoadOptions) -> Result<Self> {
        let url = options.url.trim_end_matches('/');
        let bad = || {
            let help = "give http://HOST:PORT or https://HOST:PORT, without a path";
            Error::invalid("address of the server", format!("{:?}", options.url), help)
        };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (scheme, authority) = (uri.scheme_str(), uri.authority().ok_or_else(bad)?);
        if uri.path() != "/" || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(bad());
        }
        let port = match (scheme, authority.port_u16()) {
            (Some("http" | "https"), Some(port)) => port,
            (Some("http"), None) => 80,
            (Some("https"), None) => 443,
            _ => return Err(bad()),
        };
        let name = authority.host().trim_matches(['[', ']']);
        let found = (name, port).to_socket_addrs().map_err(|e| unavailable(url, &e.to_string()))?.next();
        let address = found.ok_or_else(|| unavailable(url, "its name has no address"))?;
        let tls = (scheme == Some("https")).then(|| connector(options, name)).transpose()?;
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        if options.model.is_empty() || !options.model.bytes().all(plain) {
            let help = "use letters, digits, -, _ and .";
            return Err(Error::invalid("name of the model", format!("{:?}", options.model), help));
        }
        let token = options.token.as_ref().map(|token| HeaderValue::try_from(format!("Bearer {token}")));
        let token = token.transpose().map_err(|_| {
            Error::invalid("token", "not printable ASCII", "give a token of the server's file")
        })?;
        Ok(Self {
            url: url.to_owned(),
            address,
            host: HeaderValue::try_from(authority.as_str()).map_err(|_| bad())?,
            tls,
            token,
            model: options.model.clone(),
            inputs: Vec::new(),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn host(&self) -> HeaderValue {
        self.host.clone()
    }

    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.token.clone()
    }

    pub(super) fn tls(&self) -> Option<(TlsConnector, ServerName<'static>)> {
        self.tls.clone()
    }

    fn path(&self, rest: &str) -> Uri {
        let path = PathAndQuery::try_from(format!("/v2/models/{}{rest}", self.model));
        // The name was checked.
        path.map(Uri::from).unwrap_or_default()
    }

    /// The request for the model's inputs.
    pub(super) fn metadata(&self) -> Request {
        Request { method: Method::GET, path: self.path(""), json_length: None, body: Bytes::new() }
    }

    /// Takes the inputs of the options, or random ones of the shapes that the model describes; says their shapes.
    pub(super) fn take_inputs(&mut self, described: &Answer, options: &LoadOptions) -> Result<String> {
        if described.status != 200 {
            return Err(unavailable(&self.url, &format!("{}: {}", described.status, described.text())));
        }
        let metadata: Metadata = serde_json::from_slice(&described.body)
            .map_err(|e| unavailable(&self.url, &format!("no metadata of the protocol: {e}")))?;
        let given = options.inputs.len();
        if given > 0 && given != metadata.inputs.len() {
            let help = "give one array for each input of the model, in its order";
            return Err(Error::mismatch("number of inputs", given, metadata.inputs.len(), help));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let mut texts = Vec::new();
        for (index, of) in metadata.inputs.into_iter().enumerate() {
            let datatype = Datatype::named(&of.datatype).ok_or_else(|| {
                let text = format!("input {} is {}, which cannot be sent", of.name, of.datatype);
                unavailable(&self.url, &text)
            })?;
            let tensor = match options.inputs.get(index) {
                Some(tensor) => fitting(&of.name, datatype, tensor)?,
                None => random(&of.name, datatype, &of.shape, &mut rng)?,
            };
            texts.push(format!("{} {:?}", of.name, tensor.shape()));
            self.inputs.push((of.name, datatype, tensor));
        }
        Ok(texts.join(", "))
    }

    /// The request for an inference within `limit`, with inputs and outputs as bytes.
    pub(super) fn infer(&self, limit: Duration) -> Request {
        let mut bytes = Vec::new();
        let mut inputs = Vec::new();
        for (name, datatype, tensor) in &self.inputs {
            let before = bytes.len();
            write_bytes(tensor, &mut bytes);
            inputs.push(json!({
                "name": name, "datatype": datatype.name(), "shape": tensor.shape(),
                "parameters": { "binary_data_size": bytes.len() - before },
            }));
        }
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let parameters = json!({ "binary_data_output": true, "timeout": micros });
        let mut body = json!({ "inputs": inputs, "parameters": parameters }).to_string().into_bytes();
        let json_length = Some(body.len());
        body.extend(bytes);
        Request { method: Method::POST, path: self.path("/infer"), json_length, body: body.into() }
    }
}

/// TLS to a server called `name`.
fn connector(options: &LoadOptions, name: &str) -> Result<(TlsConnector, ServerName<'static>)> {
    let Some(authority) = &options.authority else {
        let help = "give the file of the authority that signed the server's certificate";
        return Err(Error::invalid("authority of an https server", "missing", help));
    };
    let mut trusted = RootCertStore::empty();
    roots(authority, &mut trusted)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| unavailable(&options.url, &e.to_string()))?;
    let config = config.with_root_certificates(trusted).with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).map_err(|_| {
        Error::invalid("name of the server", format!("{name:?}"), "give the name in its certificate")
    })?;
    Ok((TlsConnector::from(Arc::new(config)), server))
}

/// The tensor, if its bytes are those of the datatype.
fn fitting(name: &str, datatype: Datatype, tensor: &Tensor) -> Result<Tensor> {
    if Datatype::of_library(tensor.dtype()) == Some(datatype) {
        return Ok(tensor.clone());
    }
    let got = Datatype::of_library(tensor.dtype()).map_or(tensor.dtype(), Datatype::name);
    let help = "save the array with the element type of the model's input";
    Err(Error::mismatch(format!("element type of input {name}"), got, datatype.name(), help))
}

/// Random numbers for one item: floats between 0 and 1, integers 0 or 1.
fn random(name: &str, datatype: Datatype, shape: &[i64], rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let shape: Vec<usize> = shape.iter().map(|size| usize::try_from(*size).unwrap_or(1)).collect();
    let count: usize = shape.iter().product();
    let mut uniform = || rng.next_u32() >> 8;
    let unit = 1.0 / f64::from(1u32 << 24);
    match datatype {
        Datatype::Fp64 => {
            let values = (0..count).map(|_| f64::from(uniform()) * unit).collect();
            ArrayD::from_shape_vec(shape, values).map(Tensor::from)
        }
        Datatype::Fp32 => {
            #[expect(clippy::cast_possible_truncation, reason = "24 bits fit")]
            let values = (0..count).map(|_| (f64::from(uniform()) * unit) as f32).collect();
            ArrayD::from_shape_vec(shape, values).map(Tensor::from)
        }
        other => {
            // 0 and 1 are the bytes of every integer, and of small positive 16-bit floats.
            let mut bytes = vec![0; count * other.size()];
            for first in bytes.chunks_mut(other.size()) {
                first[0] = u8::from(uniform() & 1 == 1);
            }
            return from_bytes(name, other, &shape, &bytes)
                .map_err(|e| Error::invalid(format!("input {name}"), e.message, "give an array for it"));
        }
    }
    .map_err(|e| Error::invalid(format!("input {name}"), e.to_string(), "give an array for it"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::load::Arrivals;

    fn options(url: &str) -> LoadOptions {
        LoadOptions {
            url: url.to_owned(),
            model: "m".to_owned(),
            inputs: Vec::new(),
            expected: None,
            arrivals: Arrivals::Constant,
            rate: 1.0,
            duration: Duration::from_secs(1),
            connections: 1,
            limit: Duration::from_secs(1),
            seed: 1,
            token: None,
            authority: None,
        }
    }

    #[test]
    fn addresses_are_read_or_refused() {
        let port = |url: &str| Target::new(&options(url)).map(|target| target.address().port());
        assert_eq!(port("http://127.0.0.1:8000/").unwrap(), 8000);
        assert_eq!(port("http://[::1]").unwrap(), 80);
        for bad in [
            "127.0.0.1:8000",
            "ftp://127.0.0.1",
            "http://127.0.0.1:8000/v2",
            "http://u@127.0.0.1",
            "",
            "http://",
        ] {
            let error = port(bad).unwrap_err().to_string();
            assert!(error.contains("give http://HOST:PORT"), "{bad}: {error}");
        }
        assert!(port("https://127.0.0.1").unwrap_err().to_string().contains("authority"));
        let name = LoadOptions { model: "../m".to_owned(), ..options("http://127.0.0.1") };
        assert!(Target::new(&name).err().unwrap().to_string().contains("name of the model"));
    }

    #[test]
    fn inputs_are_those_given_or_random_ones_of_the_shapes_described() {
        let described = |status| Answer {
            status,
            json_length: None,
            body: br#"{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]},
                {"name":"i","datatype":"INT64","shape":[3]}]}"#
                .as_slice()
                .into(),
        };
        let of = |options: &LoadOptions| {
            let mut target = Target::new(options).unwrap();
            let text = target.take_inputs(&described(200), options)?;
            let request = target.infer(Duration::from_millis(5));
            let json: serde_json::Value =
                serde_json::from_slice(&request.body[..request.json_length.unwrap()]).unwrap();
            Ok::<_, Error>((text, request, json))
        };
        let random = options("http://127.0.0.1");
        let (text, request, json) = of(&random).unwrap();
        assert_eq!(text, "x [1, 2], i [3]");
        assert_eq!(json["inputs"][1]["parameters"]["binary_data_size"], 24);
        assert_eq!(json["parameters"]["timeout"], 5000);
        assert_eq!(request.body.len() - request.json_length.unwrap(), 8 + 24);
        assert_eq!(of(&random).unwrap().1.body, request.body);
        let array = |count: usize| Tensor::from(ArrayD::<f32>::ones(vec![1, count]));
        let few = LoadOptions { inputs: vec![array(2)], ..random.clone() };
        assert!(of(&few).unwrap_err().to_string().contains("number of inputs"));
        let other = LoadOptions { inputs: vec![array(2), array(3)], ..random.clone() };
        let error = of(&other).unwrap_err().to_string();
        assert!(error.contains("FP32") && error.contains("INT64"), "{error}");
        let error =
            Target::new(&random).unwrap().take_inputs(&described(401), &random).unwrap_err().to_string();
        assert!(error.contains("401"), "{error}");
    }
}
