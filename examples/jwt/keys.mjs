// Makes keys, and tokens to try them with:
//
//     node keys.mjs create KID ES256          # or RS256: KID.private.json, and its public part in jwks.json
//     node keys.mjs retire KID                # takes the public part out of jwks.json
//     node keys.mjs sign KID '{"sub": "ada"}' # prints a token that is good for an hour

import { createPrivateKey, generateKeyPairSync, sign } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const JWKS = "jwks.json";
const PAIRS = {
	ES256: () => generateKeyPairSync("ec", { namedCurve: "P-256" }),
	RS256: () => generateKeyPairSync("rsa", { modulusLength: 2048 }),
};

const [command, kid, argument] = process.argv.slice(2);
const others = () => (existsSync(JWKS) ? JSON.parse(readFileSync(JWKS, "utf8")).keys : []).filter((key) => key.kid !== kid);
const save = (keys) => writeFileSync(JWKS, `${JSON.stringify({ keys }, null, "\t")}\n`);

switch (command) {
	case "create": {
		const { publicKey, privateKey } = PAIRS[argument]();
		const about = { kid, alg: argument, use: "sig" };
		const secret = { ...privateKey.export({ format: "jwk" }), ...about };
		writeFileSync(`${kid}.private.json`, JSON.stringify(secret), { mode: 0o600, flag: "wx" }); // never over another key
		save([...others(), { ...publicKey.export({ format: "jwk" }), ...about }]);
		break;
	}
	case "retire":
		save(others());
		break;
	case "sign": {
		const jwk = JSON.parse(readFileSync(`${kid}.private.json`, "utf8"));
		const now = Math.floor(Date.now() / 1000);
		const claims = { iss: "https://accounts.example", aud: "https://data.example", iat: now, exp: now + 3600, ...JSON.parse(argument) };
		const text = [{ alg: jwk.alg, kid, typ: "JWT" }, claims].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
		const key = { key: createPrivateKey({ key: jwk, format: "jwk" }), dsaEncoding: "ieee-p1363" };
		console.log(`${text}.${sign("sha256", Buffer.from(text), key).toString("base64url")}`);
		break;
	}
	default:
		console.error("want: node keys.mjs create KID ES256|RS256, retire KID, or sign KID CLAIMS");
		process.exitCode = 2;
}
