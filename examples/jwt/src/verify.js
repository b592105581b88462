// Is a JWT good? By RFC 7519, and by RFC 8725, which tells how others went wrong.

/**
 * @typedef {{ kty: string, kid?: string, alg?: string, use?: string, crv?: string, n?: string, e?: string, x?: string, y?: string }} PublicKey
 * @typedef {{ issuer: string, audience: string, now: number }} Expected  now: seconds since 1970
 * @typedef {{ sub: string, [name: string]: unknown }} Claims
 */

const MAX_TOKEN = 8 * 1024; // characters
const MAX_IMPORTED = 100; // keys that are kept ready
const MIN_RSA_BYTES = 256;
const LEEWAY_SECONDS = 30; // that clocks may differ

// What is not here does not exist: neither "none" nor HS256, for which a public key
// would be the secret.
const ALGORITHMS = {
	RS256: {
		/** @param {PublicKey} key */
		fits: ({ kty }) => kty === "RSA",
		/** @param {PublicKey} key */
		part: ({ kty, n, e }) => ({ kty, n, e }),
		key: { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" },
		signature: { name: "RSASSA-PKCS1-v1_5" },
	},
	ES256: {
		/** @param {PublicKey} key */
		fits: ({ kty, crv }) => kty === "EC" && crv === "P-256",
		/** @param {PublicKey} key */
		part: ({ kty, crv, x, y }) => ({ kty, crv, x, y }),
		key: { name: "ECDSA", namedCurve: "P-256" },
		signature: { name: "ECDSA", hash: "SHA-256" },
	},
};

/** A token is not good, and the message says why. */
export class Refused extends Error {}

/**
 * What a token says, if it is good.
 * @param {string} token
 * @param {PublicKey[]} keys
 * @param {Expected} expected
 * @returns {Promise<Claims>}
 */
export async function verify(token, keys, expected) {
	const parts = token.split(".");
	if (token.length > MAX_TOKEN || parts.length !== 3) {
		throw new Refused("this is no token");
	}
	const [header, payload] = parts.slice(0, 2).map(object);
	if (!Object.hasOwn(ALGORITHMS, String(header.alg))) {
		throw new Refused("the algorithm is not allowed");
	}
	if ("crit" in header) {
		throw new Refused("it demands what is not known here");
	}
	if ("typ" in header && !/^(at\+)?jwt$/i.test(String(header.typ))) {
		throw new Refused("it is a token for something else");
	}
	const alg = /** @type {keyof typeof ALGORITHMS} */ (header.alg);
	const key = await importKey(find(keys, header.kid, alg), alg);
	const signed = new TextEncoder().encode(`${parts[0]}.${parts[1]}`);
	if (!(await crypto.subtle.verify(ALGORITHMS[alg].signature, key, decode(parts[2]), signed))) {
		throw new Refused("the signature is not good");
	}
	return checked(payload, expected);
}

/**
 * The key that a token names. Whether it fits the algorithm is for the key to say, not
 * for the token; and a key that comes in the token itself is nobody's.
 * @param {PublicKey[]} keys
 * @param {unknown} kid
 * @param {keyof typeof ALGORITHMS} alg
 */
function find(keys, kid, alg) {
	const [key, ...others] = keys.filter((k) => typeof kid === "string" && k.kid === kid);
	if (!key || others.length > 0) {
		throw new Refused("the key is unknown");
	}
	if (!ALGORITHMS[alg].fits(key) || (key.alg ?? alg) !== alg || (key.use ?? "sig") !== "sig") {
		throw new Refused("the key is for something else");
	}
	if (key.n && decode(key.n).length < MIN_RSA_BYTES) {
		throw new Refused("the key is too weak");
	}
	return key;
}

/**
 * Keys that were imported, by what was imported: they are the same for all requests.
 * @type {Map<string, Promise<CryptoKey>>}
 */
const imported = new Map();

/**
 * @param {PublicKey} key
 * @param {keyof typeof ALGORITHMS} alg
 */
function importKey(key, alg) {
	const jwk = ALGORITHMS[alg].part(key);
	const name = JSON.stringify(jwk);
	let ready = imported.get(name);
	if (!ready) {
		if (imported.size >= MAX_IMPORTED) {
			imported.clear();
		}
		ready = crypto.subtle.importKey("jwk", jwk, ALGORITHMS[alg].key, false, ["verify"]);
		imported.set(name, ready);
	}
	return ready;
}

/**
 * @param {Record<string, unknown>} claims
 * @param {Expected} expected
 * @returns {Claims}
 */
function checked(claims, { issuer, audience, now }) {
	const { iss, aud, sub, exp, nbf, iat } = claims;
	if (iss !== issuer) {
		throw new Refused("it is somebody else's token");
	}
	if (!(Array.isArray(aud) ? aud : [aud]).includes(audience)) {
		throw new Refused("it is for somebody else");
	}
	if (typeof exp !== "number" || exp <= now - LEEWAY_SECONDS) {
		throw new Refused("it has expired");
	}
	for (const from of [nbf, iat]) {
		if (from !== undefined && !(typeof from === "number" && from <= now + LEEWAY_SECONDS)) {
			throw new Refused("it is not good yet");
		}
	}
	if (typeof sub !== "string" || !/^[\x21-\x7e]{1,200}$/.test(sub)) {
		throw new Refused("it is nobody's"); // or of somebody whom no header can name
	}
	return { ...claims, sub };
}

/**
 * @param {string} part
 * @returns {Record<string, unknown>}
 */
function object(part) {
	try {
		const value = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(decode(part)));
		if (value !== null && typeof value === "object" && !Array.isArray(value)) {
			return value;
		}
	} catch {
		// below
	}
	throw new Refused("this is no token");
}

/**
 * Decodes base64url, of which there is one way to write a text.
 * @param {string} text
 */
function decode(text) {
	try {
		const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
		if (btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "") === text) {
			return Uint8Array.from(binary, (character) => character.charCodeAt(0));
		}
	} catch {
		// below
	}
	throw new Refused("this is no token");
}
