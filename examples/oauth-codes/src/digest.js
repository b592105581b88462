// Digests of texts, and how they are written.

/** @param {string} text */
function encode(text) {
	return new TextEncoder().encode(text);
}

/** @param {string} text */
export async function sha256(text) {
	return new Uint8Array(await crypto.subtle.digest("SHA-256", encode(text)));
}

/** @param {string} text */
export async function sha256hex(text) {
	return [...(await sha256(text))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * HMAC-SHA256 of a text.
 * @param {string} secret
 * @param {string} text
 */
export async function hmac(secret, text) {
	const key = await crypto.subtle.importKey("raw", encode(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
	return new Uint8Array(await crypto.subtle.sign("HMAC", key, encode(text)));
}

/** @param {Uint8Array} bytes */
export function base64url(bytes) {
	return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
