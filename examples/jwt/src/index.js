// Stands before an API: whoever shows no good JWT does not get to it. The public keys
// of those who sign are in KV, as one JWKS under the key "jwks".

import { Refused, verify } from "./verify.js";

/** @typedef {{ KEYS: KVNamespace, ISSUER: string, AUDIENCE: string }} Env */

const CACHE_SECONDS = 60; // a key that was taken away may be believed for this long

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const [, token] = request.headers.get("Authorization")?.match(/^Bearer ([\w.-]+)$/i) ?? [];
		if (!token) {
			return refuse("a token is needed", 'Bearer realm="data"');
		}
		const jwks = /** @type {{ keys?: import("./verify.js").PublicKey[] } | null} */ (
			await env.KEYS.get("jwks", { type: "json", cacheTtl: CACHE_SECONDS })
		);
		try {
			const claims = await verify(token, jwks?.keys ?? [], { issuer: env.ISSUER, audience: env.AUDIENCE, now: Date.now() / 1000 });
			return fetch(forward(request, claims.sub));
		} catch (error) {
			if (error instanceof Refused) {
				return refuse(error.message, 'Bearer realm="data", error="invalid_token"');
			}
			throw error;
		}
	},
};

/**
 * Says to the API who asks. The token stays here, and what a client says of itself is
 * overwritten.
 * @param {Request} request
 * @param {string} user
 */
function forward(request, user) {
	const headers = new Headers(request.headers);
	headers.delete("Authorization");
	headers.set("X-User", user);
	return new Request(request, { headers, redirect: "manual" });
}

/**
 * @param {string} error
 * @param {string} challenge
 */
function refuse(error, challenge) {
	return Response.json({ error }, { status: 401, headers: { "WWW-Authenticate": challenge } });
}
