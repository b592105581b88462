// Stands before an API: whoever shows no valid token does not get to it.
//
// A token is a random text that only its owner has. KV knows its SHA-256, so nobody
// who reads the namespace can use what is there. The record says whose it is and
// what it allows; it expires by itself.

/**
 * @typedef {{ TOKENS: KVNamespace, GATEWAY_KEY: string }} Env
 * @typedef {{ user: string, write?: boolean, expires?: number }} Grant  expires: seconds since 1970
 */

// A token that is revoked may go on for as long as this at a point of presence that
// has just used it; every other request is answered without asking anybody.
const CACHE_SECONDS = 60;

const READS = ["GET", "HEAD", "OPTIONS"];

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const [, token] = request.headers.get("Authorization")?.match(/^Bearer ([\w.~+/-]{20,200}=*)$/i) ?? [];
		if (!token) {
			return refuse(401, "a token is needed", 'Bearer realm="api"');
		}
		const grant = await /** @type {Promise<Grant | null>} */ (
			env.TOKENS.get(await sha256(token), { type: "json", cacheTtl: CACHE_SECONDS })
		);
		if (!grant || (grant.expires && grant.expires <= Date.now() / 1000)) {
			return refuse(401, "the token is unknown or has expired", 'Bearer realm="api", error="invalid_token"');
		}
		if (!grant.write && !READS.includes(request.method)) {
			return refuse(403, "the token allows reading only", 'Bearer realm="api", error="insufficient_scope"');
		}
		return fetch(forward(request, grant, env));
	},
};

/**
 * Says to the API who asks, and that it is this gateway that says so. The token
 * itself stays here, and what a client says of itself is overwritten.
 * @param {Request} request
 * @param {Grant} grant
 * @param {Env} env
 */
function forward(request, grant, env) {
	const headers = new Headers(request.headers);
	headers.delete("Authorization");
	headers.set("X-User", grant.user);
	headers.set("X-Gateway-Key", env.GATEWAY_KEY);
	return new Request(request, { headers, redirect: "manual" });
}

/**
 * @param {number} status
 * @param {string} error
 * @param {string} challenge
 */
function refuse(status, error, challenge) {
	return Response.json({ error }, { status, headers: { "WWW-Authenticate": challenge } });
}

/** @param {string} text */
async function sha256(text) {
	const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
	return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
