# One stage: a whole Debian with node and npm.
ARG SUITE=bookworm

# Where a company looks into TLS: --build-context certs=DIR with its certificates in DIR/ca.pem. Else this is empty.
FROM scratch AS certs

FROM deb://$SUITE?variant=minbase&packages=nodejs,npm,ca-certificates
# For a mirror of the npm registry: --build-arg NPM_CONFIG_REGISTRY
ARG NPM_CONFIG_REGISTRY
EXPOSE 3000
WORKDIR /app
COPY package.json index.js ./
RUN --mount=from=certs,target=/run/certs <<END
  if [ -e /run/certs/ca.pem ]; then export NODE_EXTRA_CA_CERTS=/run/certs/ca.pem; fi
  npm install --omit=dev --no-audit --no-fund
END
CMD ["npm", "start"]
