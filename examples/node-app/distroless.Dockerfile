# node, the libraries that it needs, and the app: no shell, no package manager.
ARG SUITE=bookworm

# Where a company looks into TLS: --build-context certs=DIR with its certificates in DIR/ca.pem. Else this is empty.
FROM scratch AS certs

FROM deb://$SUITE?variant=minbase&packages=nodejs,npm,ca-certificates AS build
# For a mirror of the npm registry: --build-arg NPM_CONFIG_REGISTRY
ARG NPM_CONFIG_REGISTRY
WORKDIR /app
COPY package.json index.js ./
RUN --mount=from=certs,target=/run/certs <<END
  if [ -e /run/certs/ca.pem ]; then export NODE_EXTRA_CA_CERTS=/run/certs/ca.pem; fi
  npm install --omit=dev --no-audit --no-fund
END

FROM deb://$SUITE?packages=nodejs
WORKDIR /app
COPY --from=build /app /app
EXPOSE 3000
ENTRYPOINT ["/usr/bin/node"]
CMD ["index.js"]
